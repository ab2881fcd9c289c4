"""The moderator of one text: what it waits for, how guards fail, what it reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from guardrails.guard import Answer, Context, Job, JobError, Scope, Step
from guardrails.stream import Moderator
from guardrails.verdict import Action, Failure, Finding
from tests.guardrails.scripted import Rule, RuleGuard

BLOCK = Rule("bad", Action.BLOCK)
Advance = Callable[[str, bool], Step]


@dataclass
class Odd:
    """A guard whose examination is given as a function."""

    advance: Advance
    on_error: Action = Action.BLOCK
    name: str = "odd"
    scope: Scope = "pattern"
    action: Action = Action.BLOCK
    changes_text: bool = False
    deadline: float = 1.0
    servables: frozenset[str] = frozenset()
    contexts: list[Context] = field(default_factory=list)

    def examine(self, context: Context) -> Any:
        self.contexts.append(context)
        return self


def answer(moderator: Moderator, pending: Sequence[Any], guard: RuleGuard) -> None:
    for job in pending:
        moderator.resolve(job, guard.predict(job.job.payload))


def test_without_guards_everything_passes_at_once() -> None:
    moderator = Moderator([], Context())
    assert moderator.feed("one ") == []
    assert moderator.release().text == "one "
    moderator.feed("two", final=True)
    release = moderator.release()
    assert (release.text, release.start, release.end, release.ended, release.withheld) == (
        "two",
        4,
        7,
        True,
        None,
    )


def test_a_segment_waits_for_its_own_answer_and_for_earlier_ones() -> None:
    guard = RuleGuard("g", [BLOCK], scope="segment")
    moderator = Moderator([guard], Context())
    first, second = moderator.feed("One two. Three four. Five")
    assert moderator.release().text == ""
    answer(moderator, [second], guard)
    assert moderator.release().text == "", "an answer out of turn releases nothing"
    answer(moderator, [first], guard)
    assert moderator.release().text == "One two. Three four. "
    assert moderator.held == 4


def test_the_slowest_guard_holds_the_text() -> None:
    slow = RuleGuard("slow", [BLOCK], scope="document")
    moderator = Moderator([RuleGuard("fast", [Rule("x", Action.REDACT)]), slow], Context())
    assert moderator.feed("One two x. ") == []
    assert moderator.release().text == ""
    pending = moderator.feed("Three.", final=True)
    assert moderator.release().text == ""
    answer(moderator, pending, slow)
    assert moderator.release().text == "One two [X]. Three."


def test_a_cut_waits_for_what_comes_before_it() -> None:
    slow = RuleGuard("slow", [Rule("two", Action.REDACT)], scope="segment")
    moderator = Moderator([RuleGuard("fast", [BLOCK]), slow], Context())
    pending = moderator.feed("One two. A bad ")
    assert moderator.release().ended is False
    answer(moderator, pending, slow)
    release = moderator.release()
    assert (release.text, release.ended) == ("One [X]. ", False), "the second segment is still open"
    pending = moderator.feed("thing.", final=True)
    answer(moderator, pending, slow)
    release = moderator.release()
    assert (release.text, release.ended) == ("A ", True)
    assert isinstance(release.withheld, Finding)
    assert moderator.release().text == ""
    assert moderator.feed("more") == []


def test_a_change_that_may_still_grow_is_held() -> None:
    wide = RuleGuard("wide", [Rule(r"b.*?d|x", Action.REDACT, "W")])
    moderator = Moderator([RuleGuard("g", [Rule("ab", Action.REDACT, "G")]), wide], Context())
    moderator.feed("_ab")
    assert moderator.release().text == "_", "'b' may begin a match that overlaps 'ab'"
    moderator.feed("c")
    assert moderator.release().text == ""
    moderator.feed("d!")
    release = moderator.release()
    assert (release.text, release.replaced) == ("W!", ((1, 5),))


@pytest.mark.parametrize("on_error", [Action.BLOCK, Action.ESCALATE])
def test_a_failed_job_withholds_its_region(on_error: Action) -> None:
    guard = RuleGuard("g", [BLOCK], scope="segment", on_error=on_error)
    moderator = Moderator([guard], Context())
    first, second = moderator.feed("One two. Three four. ")
    moderator.resolve(second, JobError("overloaded"))
    assert not moderator.release().ended
    answer(moderator, [first], guard)
    release = moderator.release()
    assert (release.text, release.ended) == ("One two. ", True)
    assert release.withheld == Failure("g", "overloaded", on_error)
    assert moderator.verdict.failures == {Failure("g", "overloaded", on_error)}
    assert not moderator.verdict.findings


def test_a_failure_that_may_pass_is_on_record() -> None:
    guard = RuleGuard("g", [BLOCK], scope="segment", on_error=Action.ALLOW)
    moderator = Moderator([guard], Context())
    [first] = moderator.feed("One two. ")
    moderator.resolve(first, JobError("timeout"))
    assert moderator.release().text == "One two. "
    [second] = moderator.feed("A bad one.", final=True)
    answer(moderator, [second], guard)
    assert moderator.release().withheld is not None, "one failed job doesn't end the guard's work"
    [report] = moderator.reports()
    assert (report.state, report.failure, report.action) == ("failed", "timeout", Action.BLOCK)


def finding(start: int, end: int, action: Action = Action.ALLOW) -> Finding:
    return Finding(start, end, "odd", "X", 1.0, action)


def broken_reader(result: Any) -> Answer:
    raise KeyError(result)


def job(start: int, end: int, read: Callable[[Any], Answer] = broken_reader) -> Job:
    return Job(start, end, "s", "", read)


def fails(error: Exception) -> Advance:
    def advance(text: str, final: bool) -> Step:
        if "!" in text:
            raise error
        return Step(len(text))

    return advance


@pytest.mark.parametrize(
    ("advance", "reason"),
    [
        (fails(RuntimeError("a bug")), "failed"),
        (fails(JobError("timeout")), "timeout"),
        (lambda text, final: Step(len(text) - final), "failed"),  # settles too little at the end
        (lambda text, final: Step(len(text) + ("!" in text)), "failed"),  # settles what isn't there
        (lambda text, final: Step(len(text), [finding(0, 1)] * ("!" in text)), "failed"),  # too late
        (lambda text, final: Step(len(text), [finding(4, 99)] * ("!" in text)), "failed"),
        (lambda text, final: Step(len(text), jobs=[job(0, 2)] * ("!" in text)), "failed"),  # too late
    ],
)  # fmt: skip
def test_a_guard_that_breaks_its_contract_has_failed(advance: Advance, reason: str) -> None:
    for on_error in (Action.BLOCK, Action.ALLOW):
        moderator = Moderator([Odd(advance, on_error)], Context())
        moderator.feed("abcd")
        assert moderator.release().text == "abcd"
        moderator.feed("ef!gh", final=True)
        release = moderator.release()
        assert release.ended
        assert release.text == ("" if on_error.withholds else "ef!gh")
        assert release.withheld == (Failure("odd", reason, on_error) if on_error.withholds else None)
        assert moderator.reports()[0].failure == reason


def test_an_answer_that_cannot_be_read_is_a_failure() -> None:
    moderator = Moderator([Odd(lambda text, final: Step(len(text), jobs=[job(0, 2)]))], Context())
    [pending] = moderator.feed("abcd", final=True)
    moderator.resolve(pending, "?")
    assert moderator.release().withheld == Failure("odd", "failed", Action.BLOCK)


def test_an_answer_outside_of_its_region_is_a_failure() -> None:
    early = job(2, 4, lambda result: Answer([finding(0, 1, Action.REDACT)]))
    moderator = Moderator([Odd(lambda text, final: Step(len(text), jobs=[early]))], Context())
    [pending] = moderator.feed("abcd", final=True)
    assert moderator.release().text == "ab"
    moderator.resolve(pending, None)
    assert moderator.release().withheld == Failure("odd", "failed", Action.BLOCK)


def test_a_guard_that_cannot_begin_has_failed() -> None:
    class Refuses(Odd):
        def examine(self, context: Context) -> Any:
            raise OSError("no model")

    moderator = Moderator([Refuses(lambda text, final: Step(len(text)))], Context())
    moderator.feed("text")
    assert moderator.release().withheld == Failure("odd", "failed", Action.BLOCK)
    moderator = Moderator([Refuses(lambda text, final: Step(len(text)), Action.ALLOW)], Context())
    moderator.feed("text")
    assert moderator.release().text == "text"


def test_a_second_answer_changes_nothing() -> None:
    guard = RuleGuard("g", [BLOCK], scope="segment")
    moderator = Moderator([guard], Context())
    [pending] = moderator.feed("One two. ")
    answer(moderator, [pending], guard)
    moderator.resolve(pending, JobError("timeout"))
    assert moderator.release().text == "One two. "
    assert not moderator.verdict.failures


def test_reports_say_what_each_guard_said() -> None:
    pattern = RuleGuard("p", [Rule("x", Action.REDACT, "#"), Rule("y", Action.ALLOW)])
    segment = RuleGuard("s", [Rule("x", Action.ALLOW)], scope="segment")
    moderator = Moderator([pattern, segment], Context())
    pending = moderator.feed("a x and y. ", final=True)
    by_name = {report.guard: report for report in moderator.reports()}
    assert (by_name["p"].state, by_name["s"].state) == ("finished", "skipped")
    answer(moderator, pending, segment)
    moderator.release()
    by_name = {report.guard: report for report in moderator.reports()}
    assert [(f.start, f.end) for f in by_name["p"].findings] == [(2, 3), (8, 9)]
    assert by_name["p"].action is Action.REDACT
    assert (by_name["s"].state, by_name["s"].categories, by_name["s"].action) == (
        "finished",
        {"x": 1.0},
        Action.ALLOW,
    )
    assert all(report.ms > 0 for report in by_name.values())
    assert moderator.verdict.action is Action.REDACT


def test_guards_are_told_where_the_text_stands() -> None:
    context = Context(channel="tool_arguments", tool_name="search", prompt="p")
    odd = Odd(lambda text, final: Step(len(text)))
    Moderator([odd], context)
    assert odd.contexts == [context]


def test_what_withholds_is_the_strongest_cause_at_the_cut() -> None:
    rules = [Rule("bad", Action.ESCALATE), Rule("ba", Action.BLOCK), Rule("d", Action.BLOCK)]
    moderator = Moderator([RuleGuard("g", rules)], Context())
    moderator.feed("a bad d", final=True)
    withheld = moderator.release().withheld
    assert isinstance(withheld, Finding)
    assert (withheld.start, withheld.end, withheld.action) == (2, 4, Action.BLOCK)
