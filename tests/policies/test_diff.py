"""Differences between policies, by meaning."""

from __future__ import annotations

from policies.diff import Difference, differences
from policies.load import PolicyLibrary
from policies.spec import PolicySpec

BASE = {"name": "x", "model": {"checkpoint": "c"}}


def policy(**more: object) -> PolicySpec:
    return PolicySpec.model_validate(BASE | more)


def test_spelled_out_defaults_are_no_difference() -> None:
    one = policy(input=[{"guard": "pii"}])
    other = policy(input=[{"guard": "pii", "threshold": 0.4, "action": "redact"}], on_error="block")
    assert differences(one, other) == []


def test_settings_guards_and_order() -> None:
    one = policy(input=[{"guard": "pii"}, {"guard": "secrets"}], output=[{"guard": "toxicity"}])
    other = policy(
        model={"upstream": {"base_url": "http://h", "model": "m"}},
        input=[{"guard": "secrets"}, {"guard": "pii", "threshold": 0.5}],
        output=[{"guard": "injection", "threshold": 0.7}],
    )
    assert differences(one, other) == [
        Difference("model.checkpoint", "c", None),
        Difference("model.upstream", None, {"base_url": "http://h", "model": "m", "api_key_env": None}),
        Difference("input.pii.threshold", 0.4, 0.5),
        Difference("input (order)", ["pii", "secrets"], ["secrets", "pii"]),
        Difference("output.toxicity", {"guard": "toxicity"}, None),
        Difference("output.injection", None, {"guard": "injection", "threshold": 0.7}),
    ]


def test_every_shipped_policy_differs_from_the_others_and_not_from_itself() -> None:
    policies = PolicyLibrary().snapshot()
    for name, one in policies.items():
        for other_name, other in policies.items():
            assert bool(differences(one.spec, other.spec)) == (name != other_name)
