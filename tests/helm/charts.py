"""The chart, rendered by Helm's engine with the value sets in `ci/`, and ways to find things in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "keel"
VALUE_SETS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
WORKLOADS = ("Deployment", "StatefulSet")
Object = dict[str, Any]
ENGINE = {"vllm": {"model": "m"}}
ALONE = {"gateway": {"replicas": 1, "autoscaling": {"enabled": False}}}


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
