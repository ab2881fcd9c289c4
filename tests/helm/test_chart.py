"""The chart, rendered and linted by Helm's engine, every object checked strictly by Kubernetes' schemas."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml

from policies.load import load_policy
from policies.registry import Registry
from service.serve import check_exposure
from service.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "keel"
VALUE_SETS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
KUBERNETES = ("1.28", "1.31", "1.34", "1.37")
WORKLOADS = ("Deployment", "StatefulSet")
Object = dict[str, Any]

# The Prometheus Operator's resources are not Kubernetes' own; these are their fields that the chart uses.
CUSTOM = {
    "ServiceMonitor": {
        "selector": {"type": "object", "required": ["matchLabels"]},
        "endpoints": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "port": {"const": "http"},
                    "path": {"const": "/metrics"},
                    "interval": {"type": "string"},
                    "relabelings": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "targetLabel": {"const": "job"},
                                "replacement": {"enum": ["keel", "vllm", "reward"]},
                            },
                        },
                    },
                    "authorization": {
                        "type": "object",
                        "required": ["credentials"],
                        "properties": {
                            "type": {"const": "Bearer"},
                            "credentials": {
                                "type": "object",
                                "required": ["name", "key"],
                                "additionalProperties": {"type": "string"},
                            },
                        },
                    },
                },
            },
        },
    },
    "PrometheusRule": {"groups": {"type": "array", "minItems": 1}},
}


def values(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text())
    return loaded


def render(given: dict[str, Any]) -> list[Object]:
    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(given)
        texts = chart.render(given, name="demo", namespace="prod")
    manifests = [text for path, text in texts.items() if not path.endswith("NOTES.txt")]
    return [item for text in manifests for item in yaml.safe_load_all(text) if item]


@cache
def rendered(name: str) -> tuple[Object, ...]:
    return tuple(render(values(name)))


def pods(objects: tuple[Object, ...]) -> Iterator[tuple[str, Object]]:
    for item in objects:
        if item["kind"] in WORKLOADS:
            yield item["metadata"]["name"], item["spec"]["template"]


def the(objects: tuple[Object, ...], kind: str, name: str) -> Object:
    (found,) = [item for item in objects if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


def gateway(objects: tuple[Object, ...]) -> Object:
    (found,) = [pod for name, pod in pods(objects) if name == "demo-keel-gateway"]
    container: Object = found["spec"]["containers"][0]
    return container


def test_there_are_value_sets_for_what_people_install() -> None:
    assert VALUE_SETS == ["bundled", "external", "minimal", "multi-node", "production"]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_helm_finds_nothing_to_complain_about(name: str) -> None:
    report = helm_python.lint(str(CHART), values(name), strict=True, namespace="prod")
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_object_is_one_that_kubernetes_takes(name: str) -> None:
    for item in rendered(name):
        if item["kind"] in CUSTOM:
            assert item["apiVersion"] == "monitoring.coreos.com/v1"
            properties = CUSTOM[item["kind"]]
            schema = {"required": list(properties), "additionalProperties": False, "properties": properties}
            jsonschema.validate(item["spec"], schema)
            continue
        for version in KUBERNETES:
            kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_names_are_given_once(name: str) -> None:
    names = [(item["kind"], item["metadata"]["name"]) for item in rendered(name)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", VALUE_SETS)
def test_no_pod_runs_as_root_or_writes_where_no_volume_is(name: str) -> None:
    for _, pod in pods(rendered(name)):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False  # a Service's name must not become a setting
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert container["readinessProbe"]
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tmp"}  # noqa: S108
            claims = {claim["metadata"]["name"] for claim in _claims(name, pod)}
            assert mounts == {volume["name"] for volume in spec["volumes"]} | claims


def _claims(name: str, pod: Object) -> list[Object]:
    (owner,) = [
        item for item in rendered(name) if item["kind"] in WORKLOADS and item["spec"]["template"] is pod
    ]
    claims: list[Object] = owner["spec"].get("volumeClaimTemplates", [])
    return claims


@pytest.mark.parametrize("name", VALUE_SETS)
def test_secrets_are_referred_to_and_never_made(name: str) -> None:
    assert not [item for item in rendered(name) if item["kind"] == "Secret"]
    secret = re.compile(r"(PASSWORD|_TOKEN|_KEY|_KEYS|_KEY_\d+|STORE__URL|STORAGE)$")
    for _, pod in pods(rendered(name)):
        for variable in pod["spec"]["containers"][0]["env"]:
            if secret.search(variable["name"]) and "valueFrom" not in variable:
                # Put together by Kubernetes from variables that come from a Secret.
                outside = re.sub(r"\$\([A-Z_0-9]+\)", "", variable["value"])
                assert outside != variable["value"]
                assert re.fullmatch(
                    r'[\[\]", ]*|postgresql://keel:@[a-z0-9:/-]+|redis://:@[a-z0-9:-]+', outside
                )


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_gateways_environment_is_a_configuration_that_keel_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}
    for variable in gateway(rendered(name))["env"]:
        text = variable.get("value")
        if text is None:
            text = _secret(variable)
        seen[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda match: seen[match[1]], text)
    for variable, text in seen.items():
        monkeypatch.setenv(variable, text)
    settings = Settings.load()
    check_exposure(settings)
    assert settings.host == "0.0.0.0"  # noqa: S104
    assert len(settings.api_keys) == len(values(name).get("secrets", {}).get("apiKeys", ["one"]))
    assert settings.admin_key is not None
    assert settings.hash_key is not None
    assert settings.upstream is not None
    assert settings.upstream.model
    several = values(name)["gateway"].get("replicas", 2) > 1 if "gateway" in values(name) else True
    if several:
        assert settings.store.url is not None
        assert settings.limits.storage.startswith("redis")
    grace = the_gateway(name)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > settings.drain_delay_s + settings.drain_timeout_s


def _secret(variable: Object) -> str:
    """What an operator would have put there."""
    key = variable["valueFrom"]["secretKeyRef"]
    if variable["name"] == "KEEL_STORE__URL":
        return "postgresql://keel:secret@database:5432/keel"
    if variable["name"] == "KEEL_LIMITS__STORAGE":
        return "rediss://:secret@limits:6379"
    return f"{key['name']}-{key['key']}-0123456789abcdef"


def the_gateway(name: str) -> Object:
    (found,) = [
        item
        for item in rendered(name)
        if item["kind"] in WORKLOADS and item["metadata"]["name"] == "demo-keel-gateway"
    ]
    return found


@pytest.mark.parametrize("name", VALUE_SETS)
def test_services_budgets_scalers_and_policies_reach_pods_that_exist(name: str) -> None:
    objects = rendered(name)
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(objects)}
    # What StatefulSets add to their pods' labels by themselves.
    labels = {name: {**of, "apps.kubernetes.io/pod-index": "0"} for name, of in labels.items()}

    def reached(selector: Object) -> bool:
        return any(selector.items() <= of.items() for of in labels.values())

    covered = set()
    for item in objects:
        spec = item.get("spec", {})
        if item["kind"] == "Service":
            assert reached(spec["selector"]), item["metadata"]["name"]
        elif item["kind"] in ("PodDisruptionBudget", *WORKLOADS):
            assert reached(spec["selector"]["matchLabels"])
        elif item["kind"] == "NetworkPolicy":
            covered |= {
                n for n, of in labels.items() if spec["podSelector"]["matchLabels"].items() <= of.items()
            }
            assert spec["policyTypes"] == ["Ingress", "Egress"]
        elif item["kind"] == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            assert the(objects, target["kind"], target["name"])["apiVersion"] == target["apiVersion"]
            assert "replicas" not in the(objects, target["kind"], target["name"])["spec"]
            assert spec["metrics"][0]["pods"]["metric"]["name"] == "keel_http_requests_in_flight"
    assert covered == set(labels)


def test_large_numbers_reach_keel_as_they_were_written() -> None:
    variables = {v["name"]: v.get("value") for v in gateway(rendered("production"))["env"]}
    assert variables["KEEL_LIMITS__TOKENS_PER_MINUTE"] == "2000000"
    assert variables["KEEL_LIMITS__MAX_BODY_BYTES"] == "4194304"
    assert variables["KEEL_TRACING__SAMPLE_RATE"] == "0.05"


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


def test_policies_in_the_values_are_policies(tmp_path: Path) -> None:
    policies = the(rendered("production"), "ConfigMap", "demo-keel-policies")["data"]
    for file, text in policies.items():
        (tmp_path / file).write_text(text)
        assert load_policy(tmp_path / file, Registry(ROOT / "checkpoints")).name == "support"
    mounts = {mount["name"]: mount["mountPath"] for mount in gateway(rendered("production"))["volumeMounts"]}
    variables = {v["name"]: v.get("value") for v in gateway(rendered("production"))["env"]}
    assert json.loads(variables["KEEL_POLICIES"] or "") == [mounts["policies"]]


def test_dashboards_and_rules_are_the_projects_own() -> None:
    boards = sorted((ROOT / "monitoring" / "grafana" / "dashboards").glob("*.json"))
    rules = sorted((ROOT / "monitoring" / "prometheus" / "rules").glob("*.yaml"))
    assert boards
    assert rules
    objects = rendered("bundled")
    for board in boards:
        held = the(objects, "ConfigMap", f"demo-keel-dashboard-{board.stem}")
        assert held["data"] == {board.name: board.read_text()}
        assert held["metadata"]["labels"]["grafana_dashboard"] == "1"
    for file in rules:
        assert the(objects, "PrometheusRule", f"demo-keel-{file.stem}")["spec"] == yaml.safe_load(
            file.read_text()
        )


ENGINE = {"vllm": {"model": "m"}}
ALONE = {"gateway": {"replicas": 1, "autoscaling": {"enabled": False}}}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({**ENGINE, **ALONE, "gatway": {}}, "gatway"),
        ({**ENGINE, "gateway": {**ALONE["gateway"], "settings": {"port": 9}}}, "port"),
        ({**ENGINE, "gateway": {**ALONE["gateway"], "policies": {"../x.yaml": ""}}}, "x.yaml"),
        ({**ENGINE, **ALONE, "secrets": {"apiKeys": []}}, "apiKeys"),
        ({"vllm": {"model": "m", "podSecurityContext": {"runAsUser": 0}}, **ALONE}, "runAsUser"),
        (ALONE, "vllm.model is empty"),
        ({**ALONE, "vllm": {"enabled": False}}, "there is no engine"),
        ({**ENGINE, **ALONE, "upstream": {"baseUrl": "https://x/v1", "model": "m"}}, "exclude one another"),
        (
            {**ALONE, "vllm": {"enabled": False}, "upstream": {"baseUrl": "https://x"}},
            "upstream.model is empty",
        ),
        (ENGINE, "several gateways need one store"),
        ({**ENGINE, "postgres": {"bundled": True}}, "several gateways need shared limits"),
        ({**ALONE, "vllm": {"model": "m", "gpus": 0, "multiNode": {"enabled": True}}}, "over several nodes"),
    ],
)
def test_values_that_cannot_work_are_refused_before_anything_is_installed(
    given: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(helm_python.HelmError, match=re.escape(complaint)):
        render(given)


def test_the_notes_name_what_is_missing() -> None:
    with helm_python.Chart.load(str(CHART)) as chart:
        texts = chart.render(values("bundled"), name="demo", namespace="prod")
    (notes,) = [text for path, text in texts.items() if path.endswith("NOTES.txt")]
    assert "create secret generic keel" in notes
    assert "--from-literal=postgres-password=" in notes
    assert "networkPolicy.monitoring" not in notes


def test_the_notes_say_that_prometheus_is_kept_out() -> None:
    given = {**ENGINE, **ALONE, "monitoring": {"serviceMonitor": {"enabled": True}}}
    with helm_python.Chart.load(str(CHART)) as chart:
        texts = chart.render(given, name="demo", namespace="prod")
    (notes,) = [text for path, text in texts.items() if path.endswith("NOTES.txt")]
    assert "lets Prometheus reach the engines: name its pods in networkPolicy.monitoring." in notes
