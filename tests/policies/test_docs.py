"""What the documentation shows can be loaded, and what it lists is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guardrails.build import GuardEnvironment, problems
from policies.load import PolicyLibrary, load_policy
from policies.registry import Registry
from policies.spec import PolicySpec

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "POLICIES.md").read_text(encoding="utf-8")
JUDGES = (ROOT / "docs" / "SAFETY-JUDGES.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE + JUDGES, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0].removeprefix("name: "))
def test_every_policy_in_the_docs_loads(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_MODEL_KEY", "secret")
    path = tmp_path / "policy.yaml"
    path.write_text(block, encoding="utf-8")
    registry = Registry(ROOT / "checkpoints")
    environment = GuardEnvironment(registry, b"")
    assert load_policy(path, registry, check=lambda spec: problems(spec, environment))


def test_every_setting_and_shipped_policy_is_in_the_docs() -> None:
    assert len(BLOCKS) >= 8
    rows = {
        name
        for row in re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert rows >= set(PolicySpec.model_fields)
    assert rows >= set(PolicyLibrary().names())
