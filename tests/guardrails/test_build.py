"""From policies to guards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from guardrails.build import GuardEnvironment, build_guards, collect_servables, problems
from guardrails.servable import ServableSpec
from guardrails.verdict import Action
from policies.errors import PolicyError
from policies.load import SHIPPED, PolicyLibrary, load_policy
from policies.registry import Registry
from policies.spec import PolicySpec

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
ENV = GuardEnvironment(Registry(CHECKPOINTS), hash_key=b"k")


def policy(**more: Any) -> PolicySpec:
    return PolicySpec.model_validate({"name": "x", "model": {"checkpoint": "c"}} | more)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_policies_can_be_built(path: Path) -> None:
    spec = load_policy(path, ENV.registry, check=lambda spec: problems(spec, ENV)).spec
    guards = build_guards(spec, ENV)
    assert [guard.name for guard in guards.input] == [one.title for one in spec.input]
    assert [guard.name for guard in guards.output] == [one.title for one in spec.output]
    needed = {name for guard in (*guards.input, *guards.output) for name in guard.servables}
    assert guards.servables.keys() == needed


def test_observe_changes_and_withholds_nothing() -> None:
    guards = build_guards(PolicyLibrary().get("observe").spec, ENV)
    for guard in (*guards.input, *guards.output):
        assert (guard.action, guard.changes_text, guard.on_error) == (Action.ALLOW, False, Action.ALLOW)


@pytest.mark.parametrize(
    ("common", "own", "expected"),
    [
        ("block", None, Action.BLOCK),
        ("allow", None, Action.ALLOW),
        ("allow", "block", Action.BLOCK),
        ("block", "escalate", Action.ESCALATE),
    ],
)
def test_what_follows_a_failure(common: str, own: str | None, expected: Action) -> None:
    spec = policy(on_error=common, input=[{"guard": "secrets", "on_error": own}])
    assert build_guards(spec, ENV).input[0].on_error is expected


def test_guards_own_problems_are_told_at_their_places(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\nmodel: {upstream: {base_url: 'http://h', model: m}}\n"
        "input:\n  - guard: patterns\n    builtin: [EMAIL_ADRESS]\n    patterns: ['ok', '(']\n"
        "  - {guard: secrets, kinds: [JTW]}\n"
        "output:\n  - guard: tool_calls\n    arguments:\n      - {guard: secrets, kinds: [NOPE]}\n"
        "  - guard: pii\n    entities: [EMAIL_ADDRES]\n"
    )
    with pytest.raises(PolicyError) as caught:
        load_policy(path, ENV.registry, check=lambda spec: problems(spec, ENV))
    told = [str(fault).removeprefix(f"{path}:") for fault in caught.value.faults]
    assert [one.split(": ")[0] for one in told] == ["5:15", "6:22", "7:30", "11:34", "13:16"]
    assert "did you mean 'EMAIL_ADDRESS'?" in told[0] and "did you mean 'JWT'?" in told[2]


class _Guard:
    def __init__(self, name: str, specs: dict[str, ServableSpec], uses: set[str] | None = None) -> None:
        self.name, self.servable_specs = name, specs
        self.servables = frozenset(specs if uses is None else uses)


def test_guards_share_servables_only_if_they_mean_the_same() -> None:
    one = ServableSpec("clf", "m:f", {"path": "a"})
    same, other = ServableSpec("clf", "m:f", {"path": "a"}), ServableSpec("clf", "m:f", {"path": "b"})
    assert collect_servables([_Guard("a", {"clf": one}), _Guard("b", {"clf": same})]) == {"clf": one}  # type: ignore[list-item]
    with pytest.raises(ValueError, match="guard 'b' wants servable 'clf' with other settings"):
        collect_servables([_Guard("a", {"clf": one}), _Guard("b", {"clf": other})])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="uses servables it doesn't describe: ghost"):
        collect_servables([_Guard("a", {}, {"ghost"})])  # type: ignore[list-item]


_PII = {"guard": "pii", "ner": "none"}


@pytest.mark.parametrize(
    "guarded",
    [
        {"input": [{"guard": "secrets"}, _PII]},
        {"output": [{"guard": "tool_calls", "arguments": [{"guard": "secrets"}, _PII]}]},
    ],
)
def test_guards_are_prepared_once_their_servables_describe_themselves(guarded: dict[str, Any]) -> None:
    """The pii guard compiles what Presidio searches for before the first request, not during it."""
    asked: list[str] = []

    def describe(servable: str) -> Any:
        asked.append(servable)
        return ()

    env = GuardEnvironment(Registry(CHECKPOINTS), hash_key=b"k", describe=describe)
    guards = build_guards(policy(**guarded), env)
    assert asked == []
    guards.prepare()
    assert asked == list(guards.servables)
