"""The input chain: order, early exit, failures, deadlines, the cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.chain import LOOP_CHARACTERS, InputChain, check_texts
from guardrails.guard import Answer, Context, Job, JobError, Scope, Step
from guardrails.masking import Vault
from guardrails.parts import ChainResult, Part
from guardrails.verdict import Action, Failure, Finding
from guardrails.verdict_cache import VerdictCache


@dataclass
class WordGuard:
    """Finds a word; in a worker if `servable` is given."""

    name: str
    word: str
    action: Action = Action.BLOCK
    servable: str | None = None
    mask: bool = False
    on_error: Action = Action.BLOCK
    deadline: float = 5.0
    scope: Scope = "pattern"
    seen: list[Context] = field(default_factory=list)

    @property
    def changes_text(self) -> bool:
        return self.action is Action.REDACT

    @property
    def servables(self) -> frozenset[str]:
        return frozenset({self.servable} if self.servable else ())

    def examine(self, context: Context) -> _WordExamination:
        self.seen.append(context)
        return _WordExamination(self)

    def answer(self, text: str) -> Answer:
        starts = [i for i in range(len(text)) if text.startswith(self.word, i)]
        findings = [
            Finding(i, i + len(self.word), self.name, self.name.upper(), 0.9, self.action, mask=self.mask)
            for i in starts
        ]
        return Answer(findings, {self.name: 0.9 if starts else 0.1})


@dataclass
class _WordExamination:
    guard: WordGuard

    def advance(self, text: str, final: bool) -> Step:
        if not final:
            return Step(0)
        if self.guard.servable is None:
            answer = self.guard.answer(text)
            return Step(len(text), answer.findings, answer.scores)
        job = Job(0, len(text), self.guard.servable, text, lambda _: self.guard.answer(text))
        return Step(len(text), jobs=[job])


class Raising(WordGuard):
    def examine(self, context: Context) -> Any:
        raise ValueError("the text was: secret")


@dataclass
class Runner:
    """Answers after `delay`, or as `script` says, and remembers who ran to the end and who was cancelled."""

    delay: float = 0.0
    script: dict[str, Callable[[], Any]] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def run(self, servable: str, payload: Any, timeout: float) -> Any:
        self.asked.append(servable)
        try:
            await asyncio.sleep(self.delays.get(servable, self.delay))
        except asyncio.CancelledError:
            self.cancelled.append(servable)
            raise
        self.finished.append(servable)
        return self.script[servable]() if servable in self.script else None


def fail(error: BaseException) -> Callable[[], Any]:
    def raise_it() -> Any:
        raise error

    return raise_it


def chain(
    guards: Sequence[WordGuard], runner: Runner | None = None, cache: VerdictCache | None = None
) -> InputChain:
    return InputChain(guards, runner or Runner(), cache, policy_digest="d")


async def run(guards: Sequence[WordGuard], text: str, runner: Runner | None = None) -> ChainResult:
    return await chain(guards, runner).transform([Part("user", text)], Vault([text]))


async def test_phases_split_by_cost_and_by_what_guards_can_do() -> None:
    local = WordGuard("local", "bad")
    masking = WordGuard("masking", "ann", Action.REDACT, "ner", mask=True)
    judging = WordGuard("judging", "evil", servable="clf")
    runner = Runner()
    under_test = chain([judging, masking, local], runner)
    assert under_test.has_judges
    parts = [Part("user", "ann is evil")]
    transformed = await under_test.transform(parts, Vault())
    assert runner.asked == ["ner"] and transformed.action is Action.REDACT
    assert transformed.parts[0].text == "<MASKING_1> is evil" and transformed.parts[0].changed
    judged = await under_test.judge(parts)
    assert runner.asked == ["ner", "clf"] and judged.action is Action.BLOCK
    assert [finding.start for finding in judged.verdict.findings] == [7], (
        "it read the text as it was received"
    )
    assert not chain([local]).has_judges


async def test_a_sure_verdict_asks_no_worker() -> None:
    runner = Runner()
    result = await run(
        [WordGuard("ner", "ann", Action.REDACT, "ner"), WordGuard("cheap", "bad")], "bad ann", runner
    )
    assert result.action is Action.BLOCK and runner.asked == []
    assert [(r.guard, r.state, r.action) for r in result.parts[0].reports] == [
        ("cheap", "finished", Action.BLOCK),
        ("ner", "skipped", Action.ALLOW),
    ]


async def test_a_block_cancels_what_still_runs() -> None:
    runner = Runner(delays={"fast": 0.0, "slow": 30.0})
    guards = [WordGuard("slow", "x", servable="slow"), WordGuard("fast", "bad", servable="fast")]
    result = await chain(guards, runner).judge([Part("user", "bad")])
    assert result.action is Action.BLOCK
    assert runner.cancelled == ["slow"]
    assert {report.guard: report.state for report in result.parts[0].reports} == {
        "slow": "skipped",
        "fast": "finished",
    }


async def test_guards_of_a_stage_run_together() -> None:
    class Together(Runner):
        """Answers when all have been asked."""

        all_asked = asyncio.Event()

        async def run(self, servable: str, payload: Any, timeout: float) -> Any:
            self.asked.append(servable)
            if len(self.asked) == 10:
                self.all_asked.set()
            await self.all_asked.wait()
            self.finished.append(servable)

    runner = Together()
    guards = [WordGuard(f"g{n}", "x", servable=f"s{n}") for n in range(5)]
    await chain(guards, runner).judge([Part("user", "fine"), Part("tool", "more")])
    assert len(runner.finished) == 10


async def test_cancelling_the_request_cancels_its_jobs() -> None:
    runner = Runner(delay=30)
    task = asyncio.create_task(
        chain([WordGuard("g", "x", servable="s")], runner).judge([Part("user", "text")])
    )
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert runner.cancelled == ["s"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (JobError("worker_died"), "worker_died"),
        (JobError("overloaded"), "overloaded"),
        (RuntimeError("the text was: secret"), "failed"),
        (asyncio.CancelledError(), "failed"),
    ],
)
@pytest.mark.parametrize("on_error", [Action.BLOCK, Action.ESCALATE, Action.ALLOW])
async def test_a_failure_is_answered_by_on_error(error: BaseException, reason: str, on_error: Action) -> None:
    guard = WordGuard("g", "x", servable="s", on_error=on_error)
    result = await chain([guard], Runner(script={"s": fail(error)})).judge([Part("user", "x marks")])
    assert result.action is on_error
    assert result.verdict.failures == {Failure("g", reason, on_error)} and not result.verdict.findings
    report = result.parts[0].reports[0]
    assert (report.state, report.failure, report.action) == ("failed", reason, on_error)
    assert result.parts[0].text == ("" if on_error.withholds else "x marks")


async def test_a_guard_that_raises_is_a_failure_and_says_nothing_of_the_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = await run([Raising("g", "x")], "secret")
    assert result.verdict.failures == {Failure("g", "failed", Action.BLOCK)}
    assert "the text was" not in "".join(capsys.readouterr())


async def test_an_answer_that_cannot_be_read_is_a_failure() -> None:
    class Unreadable(WordGuard):
        def answer(self, text: str) -> Answer:
            raise KeyError("labels")

    result = await chain([Unreadable("g", "x", servable="s")]).judge([Part("user", "x")])
    assert result.verdict.failures == {Failure("g", "failed", Action.BLOCK)}


async def test_a_late_guard_is_a_failure_even_if_the_runner_never_answers() -> None:
    guard = WordGuard("g", "x", servable="s", deadline=0.05)
    other = WordGuard("h", "x", servable="t", deadline=5, on_error=Action.ALLOW)
    runner = Runner(delays={"s": 60.0})
    result = await chain([guard, other], runner).judge([Part("user", "fine")])
    assert result.verdict.failures == {Failure("g", "timeout", Action.BLOCK)}


async def test_only_the_policys_roles_are_examined() -> None:
    guard = WordGuard("g", "bad")
    parts = [Part("system", "bad"), Part("user", "fine"), Part("assistant", "bad"), Part("tool", "fine")]
    result = await chain([guard]).transform(parts, Vault())
    assert result.action is Action.ALLOW
    assert [bool(part.reports) for part in result.parts] == [False, True, False, True]
    assert [context.role for context in guard.seen] == ["user", "tool"]


async def test_masks_of_all_parts_share_the_requests_vault() -> None:
    vault = Vault(["ann", "ann and <G_1>"])
    guard = WordGuard("g", "ann", Action.REDACT, mask=True)
    result = await chain([guard]).transform([Part("user", "ann"), Part("tool", "ann and <G_1>")], vault)
    assert [part.text for part in result.parts] == ["<G_2>", "<G_2> and <G_1>"]
    assert vault.value("<G_2>") == "ann"


async def test_concurrent_requests_keep_their_own_vaults() -> None:
    guard = WordGuard("g", "ann", Action.REDACT, "s", mask=True)
    under_test = chain([guard], Runner(delay=0.01), VerdictCache())
    vaults = [Vault([f"ann{n} <G_{n}>"]) for n in range(1, 9)]
    texts = [f"ann{n} <G_{n}>" for n in range(1, 9)]
    results = await asyncio.gather(
        *(under_test.transform([Part("user", t)], v) for t, v in zip(texts, vaults, strict=True))
    )
    for number, result in enumerate(results, 1):
        free = 2 if number == 1 else 1
        assert result.parts[0].text == f"<G_{free}>{number} <G_{number}>"


async def test_remembered_verdicts_are_told_apart_by_all_they_depend_on() -> None:
    guard, cache = WordGuard("g", "bad", servable="s"), VerdictCache()
    runner = Runner()
    base = Part("user", "bad")
    variants = [
        base,
        Part("tool", "bad"),
        Part("user", "bad "),
        Part("user", "bad", prompt="p"),
        Part("user", "bad", tool_name="t"),
        Part("user", "bad", channel="reasoning"),
        Part("user", "bad", stage="output"),
    ]
    for part in variants:
        await check_texts([guard], [part], runner, cache, policy_digest="d")
    await check_texts([guard], [base], runner, cache, policy_digest="other")
    assert len(runner.asked) == len(variants) + 1
    for part in variants:
        result = await check_texts([guard], [part], runner, cache, policy_digest="d")
        assert result.parts[0].reports[0].cached and result.action is Action.BLOCK
    assert len(runner.asked) == len(variants) + 1
    await check_texts([guard], [Part("user", "bad", tools=[{}])], runner, cache, policy_digest="d")
    await check_texts([guard], [Part("user", "bad", tools=[{}])], runner, cache, policy_digest="d")
    assert len(runner.asked) == len(variants) + 3, "a request's own tools are in no key"


async def test_a_long_conversation_costs_only_its_new_turn() -> None:
    runner, cache = Runner(), VerdictCache()
    under_test = chain([WordGuard("g", "x", servable="s")], runner, cache)
    turns = [Part("user", f"turn {n}") for n in range(20)]
    await under_test.judge(turns)
    await under_test.judge([*turns, Part("user", "turn 20")])
    assert len(runner.asked) == 21


async def test_failures_are_never_remembered() -> None:
    runner, cache = Runner(script={"s": fail(JobError("timeout"))}), VerdictCache()
    under_test = chain([WordGuard("g", "x", servable="s")], runner, cache)
    assert (await under_test.judge([Part("user", "x")])).verdict.failures
    assert len(cache) == 0
    runner.script.clear()
    result = await under_test.judge([Part("user", "x")])
    assert not result.verdict.failures and result.verdict.findings


async def test_what_was_skipped_is_not_remembered() -> None:
    cache, runner = VerdictCache(), Runner(delays={"slow": 30.0})
    guards = [WordGuard("slow", "x", servable="slow"), WordGuard("fast", "bad", servable="fast")]
    await chain(guards, runner, cache).judge([Part("user", "bad x")])
    runner.delays.clear()
    result = await check_texts(guards, [Part("user", "bad x")], runner, cache, policy_digest="d")
    assert {r.guard: (r.cached, bool(r.findings)) for r in result.parts[0].reports} == {
        "slow": (False, True),
        "fast": (True, True),
    }


async def test_checks_hear_every_guard_out() -> None:
    runner = Runner()
    guards = [
        WordGuard("a", "bad"),
        WordGuard("b", "ann", Action.REDACT, "s"),
        WordGuard("c", "x", servable="t"),
    ]
    result = await check_texts(guards, [Part("user", "ann is bad")], runner, policy_digest="d")
    assert [(r.guard, r.state, r.score) for r in result.parts[0].reports] == [
        ("a", "finished", 0.9),
        ("b", "finished", 0.9),
        ("c", "finished", 0.1),
    ]
    assert result.parts[0].text == "[B] is "


async def test_long_texts_are_scanned_away_from_the_loop() -> None:
    class Slow(WordGuard):
        def answer(self, text: str) -> Answer:
            time.sleep(0.2)
            return super().answer(text)

    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    heart = asyncio.create_task(beat())
    result = await run([Slow("g", "bad")], "fine " * LOOP_CHARACTERS + "bad")
    heart.cancel()
    assert result.action is Action.BLOCK and beats >= 5


async def test_the_same_part_twice_is_two_parts() -> None:
    part = Part("user", "bad")
    result = await check_texts([WordGuard("g", "bad")], [part, part], Runner(), policy_digest="d")
    assert [len(p.reports) for p in result.parts] == [1, 1]


def test_the_cache_is_bounded_by_entries_and_by_bytes() -> None:
    from guardrails.verdict_cache import Seen

    cache = VerdictCache(max_entries=3, max_bytes=100_000)
    for number in range(5):
        cache.put(bytes([number]), "g", Seen((), {}))
    assert len(cache) == 3 and cache.get(b"\0", "g") is None and cache.get(b"\4", "g") is not None
    assert cache.get(b"\2", "g") and cache.put(b"\5", "g", Seen((), {})) is None
    assert cache.get(b"\3", "g") is None, "the least recently used went first"
    many = tuple(Finding(n, n + 1, "g", "X", 1.0) for n in range(110))
    for number in range(10):
        cache.put(bytes([number]), "g", Seen(many, {}))
        assert cache.bytes <= 100_000
    cache.put(b"huge", "g", Seen(many * 10, {}))
    assert cache.get(b"huge", "g") is None
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)


_WORDS = st.lists(st.sampled_from(["bad", "ann", "evil", "fine", "<ANN_1>"]), max_size=5).map(" ".join)
_GUARDS = st.lists(
    st.tuples(
        st.sampled_from(["bad", "ann", "evil"]),
        st.sampled_from([Action.ALLOW, Action.REDACT, Action.BLOCK]),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@given(texts=st.lists(_WORDS, min_size=1, max_size=5), settings=_GUARDS)
def test_remembering_changes_nothing(
    texts: list[str], settings: list[tuple[str, Action, bool, bool]]
) -> None:
    guards = [
        WordGuard(f"{word}{n}", word, action, f"s{n}" if remote else None, mask and action is Action.REDACT)
        for n, (word, action, remote, mask) in enumerate(settings)
    ]

    async def both() -> None:
        cache = VerdictCache()
        remembering, plain = chain(guards, cache=cache), chain(guards)
        for upto in range(1, len(texts) + 1):
            parts = [Part("user", text) for text in texts[:upto]]
            told = [
                (await c.transform(parts, Vault(p.text for p in parts)), await c.judge(parts))
                for c in (remembering, plain)
            ]
            for phase_remembered, phase_plain in zip(*told, strict=True):
                assert phase_remembered.action == phase_plain.action
                if not phase_plain.action.withholds:
                    assert [p.text for p in phase_remembered.parts] == [p.text for p in phase_plain.parts]
                    assert phase_remembered.verdict == phase_plain.verdict

    asyncio.run(both())
