"""The chart, rendered and linted by Helm's engine, every object checked strictly by Kubernetes' schemas."""

from __future__ import annotations

import json
import re
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
from tests.helm.charts import (
    ALONE,
    CHART,
    ENGINE,
    ROOT,
    VALUE_SETS,
    WORKLOADS,
    Object,
    gateway,
    pods,
    render,
    rendered,
    the,
    values,
)

KUBERNETES = ("1.28", "1.31", "1.34", "1.37")

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
