"""The real guards that ask workers, at tool-call arguments: what escapes hide from neither of them."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.build import build_guard
from guardrails.guard import Context, Guard
from guardrails.stream import Moderator
from guardrails.verdict import Action
from policies.spec import PiiSpec, SecretsSpec, ToxicitySpec
from tests.guardrails import pii_texts
from tests.guardrails.conftest import Workers
from tests.guardrails.json_texts import Number, spell

pytestmark = pytest.mark.xdist_group("guard-workers")
ARGUMENTS = Context(channel="tool_arguments")
PII = {"guard": "pii", "action": "redact"}


def guards(workers: Workers, *specs: dict[str, Any]) -> list[Guard]:
    kinds = {"pii": PiiSpec, "secrets": SecretsSpec, "toxicity": ToxicitySpec}
    return [build_guard(kinds[spec["guard"]].model_validate(spec), workers.environment) for spec in specs]


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(char):04x}" for char in text)


def moderated(workers: Workers, under_test: list[Guard], text: str, size: int) -> str:
    moderator = Moderator(under_test, ARGUMENTS)
    released = ""
    for at in range(0, len(text), size):
        for pending in moderator.feed(text[at : at + size], final=at + size >= len(text)):
            workers.resolve(moderator, pending)
        released += moderator.release().text
    assert not moderator.verdict.failures
    return released


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_personal_data_in_escapes_is_found(workers: Workers, size: int) -> None:
    mail, name = escaped("ann@example.com"), escaped("Maria")
    text = f'{{"to": "{mail}", "card": 4111111111111111, "text": "Hello {name} Gonzalez!"}}'
    redacted = json.loads(moderated(workers, guards(workers, PII), text, size))
    assert redacted == {"to": "<EMAIL_ADDRESS>", "card": "<CREDIT_CARD>", "text": "Hello <PERSON>!"}


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_insults_in_escapes_are_found(workers: Workers, size: int) -> None:
    blocking = guards(workers, {"guard": "toxicity", "threshold": 0.7, "action": "block"})
    insult = escaped("You are a stupid idiot and I hate you.")
    text = f'{{"subject": "{"The minutes of our last meeting are attached. " * 3}", "body": "{insult}"}}'
    released = moderated(workers, blocking, text, size)
    assert "minutes" in released and "\\u" not in released
    polite = text.replace(insult, escaped("See you on Monday."))
    assert moderated(workers, blocking, polite, size) == polite


@given(st.integers(0, 2**32), st.lists(st.floats(0, 1), max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_however_arguments_are_cut_the_same_goes_out(
    workers: Workers, seed: int, fractions: list[float], random: Random
) -> None:
    draw = Random(seed)
    values = [pii_texts.text(draw)[:80], Number(str(draw.randrange(10**16))), pii_texts.text(draw)[:80]]
    text = spell([("note", values[0]), ("account number", values[1]), ("more", (values[2],))], draw).raw
    under_test = guards(workers, PII, {"guard": "secrets", "action": "redact"})
    expected = workers.moderate(Moderator(under_test, ARGUMENTS), text)
    json.loads(expected)
    moderator = Moderator(under_test, ARGUMENTS)
    for released in workers.released(moderator, text, fractions, random):
        assert expected.startswith(released)
    assert released == expected
    assert moderator.verdict.action <= Action.REDACT and not moderator.verdict.failures
