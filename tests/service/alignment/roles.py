"""One upstream that plays all parts of critique and revision: told apart by what it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.fakes import upstream as fake
from tests.fakes.upstream import Behaviour, Exchange

FINE: dict[str, Any] = {"violations": []}


def violates(*principles: str, severity: str = "high", evidence: str = "x") -> dict[str, Any]:
    """A critique that names these principles."""
    listed = [{"principle": p, "evidence": evidence, "severity": severity} for p in principles]
    return {"violations": listed}


def part_of(body: dict[str, Any]) -> str:
    """`judge`, `reviser`, or `model` for an ordinary request."""
    first = (body.get("messages") or [{}])[0].get("content") or ""
    for part, begin in (("judge", "You examine"), ("reviser", "You rewrite")):
        if isinstance(first, str) and first.startswith(begin):
            return part
    return "model"


def case_in(body: dict[str, Any]) -> dict[str, Any]:
    """The conversation and the reply that a judge or reviser is shown."""
    shown: dict[str, Any] = json.loads(body["messages"][1]["content"])
    return shown


def says(text: str, **message: Any) -> Behaviour:
    """A whole reply of one choice, at 7 tokens for whatever it says."""
    payload = fake.completion(text)
    payload["choices"][0]["message"].update(message)
    payload["usage"] = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return fake.answer(payload)


Say = str | dict[str, Any] | Behaviour
Judgement = Callable[[str], Say]


@dataclass
class Troupe:
    """What each part says. `judge` is a function of the reply; lists are used up, their last item stays."""

    model: list[Say] = field(default_factory=lambda: ["A first reply."])
    reviser: list[Say] = field(default_factory=lambda: ["A better reply."])
    judge: Sequence[Say] | Judgement = field(default_factory=lambda: [FINE])
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.request.method == "GET":
            await fake.well_behaved()(exchange)
            return
        body = exchange.request.json
        part = part_of(body)
        self.asked.append((part, body))
        if part == "judge" and callable(self.judge):
            say = self.judge(case_in(body)["reply"].get("content", ""))
        else:
            line: Any = getattr(self, part)
            say = line.pop(0) if len(line) > 1 else line[0]
        if isinstance(say, dict):
            say = json.dumps(say)
        await (says(say) if isinstance(say, str) else say)(exchange)

    def bodies(self, part: str) -> list[dict[str, Any]]:
        """What this part was asked, in order."""
        return [body for who, body in self.asked if who == part]


def words_are_violations(words: Iterable[str], principle: str) -> Judgement:
    """A judge that looks for words."""
    bad = tuple(words)
    return lambda reply: violates(principle) if any(word in reply for word in bad) else FINE
