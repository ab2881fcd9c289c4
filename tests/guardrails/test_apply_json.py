"""Changed arguments stay JSON, and what was masked in them comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.apply_json import apply_json
from guardrails.masking import Unmasker, Vault
from guardrails.verdict import Action, Finding, Verdict


def found(raw: str, *parts: str, mask: bool = False, action: Action = Action.REDACT) -> Verdict:
    return Verdict.of(
        Finding(raw.index(part), raw.index(part) + len(part), "g", "X", 1.0, action, mask=mask)
        for part in parts
    )


@pytest.mark.parametrize(
    ("raw", "part", "expected"),
    [
        ('{"card": 4111, "a": 1}', "4111", '{"card": "[X]", "a": 1}'),
        ('{"card": 4111, "a": 1}', "11", '{"card": "[X]", "a": 1}'),
        ('{"to": "Ann Lee"}', "Ann", '{"to": "[X] Lee"}'),
        ('{"to": "\\u0041nn"}', "nn", '{"to": "\\u0041[X]"}'),
        ('{"to": "\\u0041nn"}', "0041nn", '{"to": "[X]"}'),
        ('{"a": "b", "c": "d"}', 'b", "c', '{"a": "[X]", "": "d"}'),
        ('{"a": {}}', "{}", '{"a": [X]}'),
        ("Ann said so", "Ann", "[X] said so"),
    ],
)
def test_what_is_replaced(raw: str, part: str, expected: str) -> None:
    assert apply_json(raw, found(raw, part)) == expected


def test_what_withholds_cuts() -> None:
    raw = '{"to": "Ann"}'
    assert apply_json(raw, found(raw, "Ann", action=Action.BLOCK)) == '{"to": "'


def test_masks_remember_decoded_values_and_give_them_back_escaped() -> None:
    raw = '{"to": "Ann \\"A\\" \\u004cee", "n": 4111, "m": 4111}'
    vault = Vault([raw])
    masked = apply_json(raw, found(raw, 'Ann \\"A\\" \\u004cee', "4111", mask=True), vault.placeholder)
    assert json.loads(masked) == {"to": "<X_1>", "n": "<X_2>", "m": 4111}
    assert vault.value("<X_1>") == 'Ann "A" Lee'
    assert json.loads(Unmasker(vault, json_strings=True).feed(masked, final=True))["to"] == 'Ann "A" Lee'


_KEYS = st.text(alphabet="ab", max_size=2)
_DATA = st.recursive(
    st.integers() | st.text(alphabet='ab"\\ \né😀', max_size=6) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(
    data=_DATA, ascii_only=st.booleans(), spans=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 9)))
)
def test_json_stays_json(data: Any, ascii_only: bool, spans: list[tuple[int, int]]) -> None:
    raw = json.dumps(data, ensure_ascii=ascii_only)
    wanted = [(start % len(raw), min(start % len(raw) + length, len(raw))) for start, length in spans]
    structure = set('{}[],: "')
    findings = [
        Finding(a, b, "g", "X", 1.0, Action.REDACT, mask=True)
        for a, b in wanted
        if not set(raw[a:b]) <= structure
    ]
    vault = Vault([raw])
    json.loads(apply_json(raw, Verdict.of(findings), vault.placeholder))
