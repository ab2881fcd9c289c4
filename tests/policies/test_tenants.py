"""Tenants change what the owner lets them change, within the owner's limits, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.adjustable import Adjustable
from policies.errors import PolicyError
from policies.load import PolicyLibrary, load_policy
from policies.spec import PolicySpec
from policies.tenants import locate

OWNERS = """\
name: shared
model: {upstream: {base_url: 'http://127.0.0.1:9/v1', model: m}}
output:
  - {guard: toxicity, threshold: 0.7, action: block}
  - {guard: pii, label: names, entities: [PERSON, US_SSN], action: redact}
adjustable:
  - {setting: output.toxicity.threshold, min: 0.3, max: 0.8}
  - {setting: output.toxicity.thresholds.threat, max: 0.5}
  - {setting: output.names.entities, at_least: [US_SSN]}
  - {setting: output.names.action, one_of: [redact, block]}
  - {setting: refusal}
"""
ACME = """\
tenant: acme
keys: [acme-web, acme-batch]
policies:
  shared:
    output.toxicity.threshold: 0.5
    output.toxicity.thresholds.threat: 0.4
    output.names.entities: [US_SSN, EMAIL_ADDRESS]
    refusal: Not at Acme.
"""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    policies, tenants = tmp_path / "policies", tmp_path / "tenants"
    policies.mkdir()
    tenants.mkdir()
    (policies / "shared.yaml").write_text(OWNERS)
    return policies, tenants


def library(folders: tuple[Path, Path]) -> PolicyLibrary:
    return PolicyLibrary([folders[0]], shipped=None, tenants=[folders[1]])


def told(folders: tuple[Path, Path], text: str) -> list[str]:
    path = folders[1] / "acme.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        library(folders)
    return [str(fault).removeprefix(f"{path}:") for fault in caught.value.faults]


def test_a_tenant_has_its_own_variant_and_the_owners_stays(folders: tuple[Path, Path]) -> None:
    (folders[1] / "acme.yaml").write_text(ACME)
    loaded = library(folders)
    assert loaded.names() == ("shared", "shared#acme")
    owners, variant = loaded.get("shared"), loaded.get("shared#acme")
    toxicity, names = variant.spec.output
    assert toxicity.threshold == 0.5  # type: ignore[union-attr]
    assert toxicity.thresholds == {"threat": 0.4}  # type: ignore[union-attr]
    assert names.entities == ("US_SSN", "EMAIL_ADDRESS")  # type: ignore[union-attr]
    assert (variant.name, variant.spec.refusal) == ("shared", "Not at Acme.")
    assert variant.tenant is not None
    assert variant.tenant.keys == ("acme-web", "acme-batch")
    assert owners.tenant is None
    assert owners.spec == load_policy(folders[0] / "shared.yaml").spec
    assert owners.digest != variant.digest


def test_what_the_owner_does_not_allow_is_told_with_its_place(folders: tuple[Path, Path]) -> None:
    text = """\
tenant: acme
keys: [acme-web]
policies:
  shared:
    output.toxicity.threshold: 0.9
    output.toxicity.action: allow
    output.names.entities: [PERSON]
    output.names.action: allow
    output.toxicity.thresholds.threat: high
  shard: {refusal: x}
"""
    said = told(folders, text)
    assert [line.split(": ", 1)[0] for line in said] == ["5:32", "6:29", "7:28", "8:26", "9:40", "10:10"]
    assert "policies.shard: there is no policy 'shard'; did you mean 'shared'?" in said[5]
    assert "at most 0.8" in said[0]
    assert "doesn't let tenants change it; did you mean 'output.toxicity.threshold'?" in said[1]
    assert "must hold US_SSN too" in said[2]
    assert "one of redact, block" in said[3]
    assert "must be a number" in said[4]


def test_a_key_belongs_to_one_tenant(folders: tuple[Path, Path]) -> None:
    (folders[1] / "aaa.yaml").write_text(ACME.replace("tenant: acme", "tenant: other"))
    (said, *_) = told(folders, ACME)
    assert "the key 'acme-web' belongs to the tenant 'other' already" in said


def test_changes_that_break_the_policy_are_refused(folders: tuple[Path, Path]) -> None:
    (said,) = told(folders, ACME.replace("refusal: Not at Acme.", "refusal: 7"))
    assert "with these changes the policy is wrong: refusal" in said


@pytest.mark.parametrize(
    "rule",
    [
        "{setting: output.toxicity.treshold}",
        "{setting: output.pii.action}",
        "{setting: name}",
        "{setting: model.x}",
        "{setting: output.toxicity.threshold}",
        "{setting: max_n, one_of: []}",
        "{setting: on_error, one_of: [block, alow]}",
        "{setting: expose, min: 1}",
        "{setting: max_n, max: 500}",
        "{setting: description, at_least: [x]}",
    ],
)
def test_what_can_not_be_adjusted_is_told_to_the_owner(folders: tuple[Path, Path], rule: str) -> None:
    path = folders[0] / "shared.yaml"
    path.write_text(OWNERS + f"  - {rule}\n")
    with pytest.raises(PolicyError, match=r"adjustable\[5\]"):
        load_policy(path)


def test_a_reload_follows_both_sides_and_keeps_what_stood_where_they_disagree(
    folders: tuple[Path, Path],
) -> None:
    acme = folders[1] / "acme.yaml"
    acme.write_text(ACME)
    loaded = library(folders)
    before = loaded.get("shared#acme")
    acme.write_text(ACME.replace("0.5", "0.6"))
    outcome = loaded.reload()
    assert (outcome.ok, outcome.changed) == (True, ("shared#acme",))
    (folders[0] / "shared.yaml").write_text(OWNERS.replace("max: 0.8", "max: 0.4"))
    outcome = loaded.reload()
    assert not outcome.ok
    assert outcome.policies["shared"].spec.adjustable[0].max == 0.4
    stands = outcome.policies["shared#acme"].spec
    assert stands.output[0].threshold == 0.4  # type: ignore[union-attr]  # as near as it may be
    assert stands.refusal == "Not at Acme."
    acme.unlink()
    outcome = loaded.reload()
    assert (outcome.ok, outcome.removed) == (True, ("shared#acme",))
    assert before.spec.output[0].threshold == 0.5  # type: ignore[union-attr]


def test_what_an_owner_adds_is_the_tenants_too_whatever_their_file_says(folders: tuple[Path, Path]) -> None:
    (folders[1] / "acme.yaml").write_text(ACME)
    loaded = library(folders)
    strict = OWNERS.replace("output:\n", "output:\n  - {guard: patterns, words: [zephyr]}\n")
    (folders[0] / "shared.yaml").write_text(strict.replace("  - {setting: refusal}\n", ""))
    outcome = loaded.reload()
    assert [fault.line for fault in outcome.faults] == [8]
    stands = outcome.policies["shared#acme"]
    assert [guard.title for guard in stands.spec.output] == ["patterns", "toxicity", "names"]
    assert stands.spec.output[1].threshold == 0.5  # type: ignore[union-attr]
    assert stands.spec.refusal == "I can't help with that."
    # What it changes next is only the tenant's fault, so it stays as it is now.
    (folders[1] / "acme.yaml").write_text(ACME.replace("0.5", "0.95"))
    assert loaded.reload().policies["shared#acme"] == stands


@given(st.floats(0, 1), st.floats(0, 1), st.floats(-1, 2))
def test_no_number_beyond_the_bounds_passes(low: float, high: float, value: float) -> None:
    low, high = min(low, high), max(low, high)
    rule = Adjustable(setting="max_n", min=low, max=high)
    assert (rule.objection(value) is None) == (low <= value <= high)
    assert rule.objection(rule.nearest(value)) is None


def test_settings_are_found_by_their_paths(folders: tuple[Path, Path]) -> None:
    spec: PolicySpec = load_policy(folders[0] / "shared.yaml").spec
    assert locate(spec, "refusal") == ("refusal",)
    assert locate(spec, "output.names.action") == ("output", 1, "action")
    assert locate(spec, "output.toxicity.thresholds.threat") == ("output", 0, "thresholds", "threat")
    assert locate(spec, "output.toxicity.thresholds.threat.x") is None
    assert locate(spec, "input.names.action") is None
