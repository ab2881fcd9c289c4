"""What the chart's objects do: who reaches whom, how pods come and go, how nodes make one engine."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from service.telemetry.metrics import Metrics
from tests.helm.charts import (
    ALONE,
    ENGINE,
    ROOT,
    VALUE_SETS,
    Object,
    gateway,
    pods,
    render,
    rendered,
    the,
    values,
)


def test_large_numbers_reach_keel_as_they_were_written() -> None:
    variables = {v["name"]: v.get("value") for v in gateway(rendered("production"))["env"]}
    assert variables["KEEL_LIMITS__TOKENS_PER_MINUTE"] == "2000000"
    assert variables["KEEL_LIMITS__MAX_BODY_BYTES"] == "4194304"
    assert variables["KEEL_TRACING__SAMPLE_RATE"] == "0.05"


def test_the_autoscaler_goes_by_a_metric_that_gateways_have() -> None:
    (metric, *_) = the(rendered("production"), "HorizontalPodAutoscaler", "demo-keel-gateway")["spec"][
        "metrics"
    ]
    name = metric["pods"]["metric"]["name"]
    assert name in {family.name for family in Metrics().registry.collect()}
    assert f"seriesQuery: '{name}{{" in (ROOT / "docs" / "KUBERNETES.md").read_text()  # the adapter's rule


def peers(objects: tuple[Object, ...], name: str) -> list[Object]:
    return [peer for rule in the(objects, "NetworkPolicy", name)["spec"]["ingress"] for peer in rule["from"]]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_engines_hear_gateways_and_prometheus_only(name: str) -> None:
    """Whoever may call the gateway must not get round it."""
    objects = rendered(name)
    given = values(name).get("networkPolicy", {})
    for role in ("vllm", "reward"):
        policies = [
            item
            for item in objects
            if item["kind"] == "NetworkPolicy" and item["metadata"]["name"] == f"demo-keel-{role}"
        ]
        for policy in policies:
            labels = [
                peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
                for peer in peers(objects, policy["metadata"]["name"])
                if peer not in given.get("monitoring", [])
            ]
            assert labels in (["gateway"], ["gateway", role])  # of several nodes, one another
    scrapers = [peer for peer in peers(objects, "demo-keel-gateway") if peer in given.get("monitoring", [])]
    assert scrapers == given.get("monitoring", [])


def egress_ports(objects: tuple[Object, ...]) -> set[int]:
    rules = the(objects, "NetworkPolicy", "demo-keel-gateway")["spec"]["egress"]
    return {port["port"] for rule in rules for port in rule["ports"]}


def test_gateways_may_connect_to_what_they_were_given() -> None:
    assert egress_ports(rendered("external")) == {53, 8443, 5432, 6380}
    assert egress_ports(rendered("bundled")) == {53, 8000, 5432, 6379}
    assert egress_ports(rendered("production")) == {53, 8000, 5432, 6379, 4318}  # its OTLP collector


def test_the_engines_key_is_asked_for_and_given() -> None:
    objects = rendered("production")
    reference = {"secretKeyRef": {"name": "keel-keys", "key": "engine"}}
    containers = {name: pod["spec"]["containers"][0]["env"] for name, pod in pods(objects)}
    for name, variable in (
        ("gateway", "ENGINE_API_KEY"),
        ("vllm", "VLLM_API_KEY"),
        ("reward", "VLLM_API_KEY"),
    ):
        (found,) = [v for v in containers[f"demo-keel-{name}"] if v["name"] == variable]
        assert found["valueFrom"] == reference
    variables = {v["name"]: v.get("value") for v in gateway(objects)["env"]}
    assert variables["KEEL_UPSTREAM__API_KEY_ENV"] == "ENGINE_API_KEY"
    assert not [v for v in gateway(rendered("bundled"))["env"] if "ENGINE" in v["name"]]


def test_rollouts_and_drains_leave_engines_to_answer() -> None:
    assert the(rendered("production"), "PodDisruptionBudget", "demo-keel-vllm")["spec"]["maxUnavailable"] == 1
    kept = the(rendered("bundled"), "Deployment", "demo-keel-vllm")["spec"]["strategy"]
    assert kept == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    alone = the(rendered("minimal"), "Deployment", "demo-keel-vllm")["spec"]["strategy"]
    assert alone == {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}  # no second GPU to begin on
    for name in VALUE_SETS:
        for _, pod in pods(rendered(name)):
            for container in pod["spec"]["containers"]:
                begins = container.get("startupProbe")
                assert begins is None or begins["periodSeconds"] * begins["failureThreshold"] >= 300


@pytest.mark.parametrize("name", VALUE_SETS)
def test_an_engine_ends_its_replies_before_it_is_killed(name: str) -> None:
    for of, pod in pods(rendered(name)):
        if of.endswith(("-vllm", "-reward")):
            (flag,) = [a for a in pod["spec"]["containers"][0]["args"] if a.startswith("--shutdown-timeout=")]
            assert pod["spec"]["terminationGracePeriodSeconds"] > 5 + int(flag.partition("=")[2]) > 5


def test_a_digest_pins_an_image_and_checkpoints_come_from_a_volume() -> None:
    digest = "sha256:" + "0" * 64
    own = {"image": {"digest": digest}, "checkpointsClaim": "models", **ALONE["gateway"]}
    objects = tuple(render({**ENGINE, "gateway": own}))
    container = gateway(objects)
    assert container["image"] == f"keel:0.1.0@{digest}"
    variables = {v["name"]: v.get("value") for v in container["env"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert variables["KEEL_CHECKPOINTS"] == mounts["checkpoints"]


def test_an_ingress_leaves_out_what_outsiders_have_no_business_with() -> None:
    (rule,) = the(rendered("production"), "Ingress", "demo-keel-gateway")["spec"]["rules"]
    assert [path["path"] for path in rule["http"]["paths"]] == ["/v1", "/ui"]


def test_alerts_know_gateways_by_the_job_that_they_are_scraped_under() -> None:
    jobs = {
        item["metadata"]["name"]: item["spec"]["endpoints"][0]["relabelings"][0]["replacement"]
        for item in rendered("production")
        if item["kind"] == "ServiceMonitor"
    }
    assert jobs == {"demo-keel-gateway": "keel", "demo-keel-vllm": "vllm", "demo-keel-reward": "reward"}
    scraped = yaml.safe_load((ROOT / "monitoring" / "prometheus" / "prometheus.yml").read_text())
    assert {one["job_name"] for one in scraped["scrape_configs"]} == {"keel", "vllm"}
    rules = (ROOT / "monitoring" / "prometheus" / "rules" / "alerts.yaml").read_text()
    assert set(re.findall(r'job="(\w+)"', rules)) == {"keel"}


def test_a_node_that_lost_the_head_joins_it_again_and_ends_when_told(tmp_path: Path) -> None:
    """The script of the pods that work for the first, with a `ray` that ends as often as it is started."""
    container = the(rendered("multi-node"), "StatefulSet", "demo-keel-vllm")["spec"]["template"]["spec"][
        "containers"
    ][0]
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit 0\n')
    ray.chmod(0o755)
    (tmp_path / "sleep").symlink_to("/bin/true")
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOSTNAME": "demo-keel-vllm-1"}
    command = [*container["command"], *container["args"]]
    with subprocess.Popen(command, env=environment) as script:
        calls = tmp_path / "calls"
        while not (calls.exists() and calls.read_text().count("\n") >= 3):
            assert script.poll() is None
            time.sleep(0.01)
        script.terminate()
        assert script.wait(30) == 0
    assert {line.split()[:2][1] for line in calls.read_text().splitlines()} == {
        "--address=demo-keel-vllm-0.demo-keel-vllm-nodes:6379"
    }


def test_several_nodes_make_one_engine_over_ray() -> None:
    objects = rendered("multi-node")
    engine = the(objects, "StatefulSet", "demo-keel-vllm")
    assert engine["spec"]["replicas"] == 2
    container = engine["spec"]["template"]["spec"]["containers"][0]
    script, name, *arguments = container["args"]
    subprocess.run(["bash", "-n", "-c", script], check=True)
    assert f'--address="$head:{values("multi-node")["vllm"].get("multiNode").get("rayPort", 6379)}"' in script
    assert {
        "--tensor-parallel-size=8",
        "--pipeline-parallel-size=2",
        "--distributed-executor-backend=ray",
    } <= {*arguments}
    assert name == "vllm"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    # Only the head answers requests, and nodes find one another before they are ready.
    assert (
        the(objects, "Service", "demo-keel-vllm")["spec"]["selector"]["apps.kubernetes.io/pod-index"] == "0"
    )
    nodes = the(objects, "Service", "demo-keel-vllm-nodes")["spec"]
    assert (nodes["clusterIP"], nodes["publishNotReadyAddresses"]) == ("None", True)
    assert engine["spec"]["serviceName"] == "demo-keel-vllm-nodes"
