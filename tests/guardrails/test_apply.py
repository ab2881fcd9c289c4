"""What becomes of a whole text: cuts, clusters, masks."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from guardrails.apply import apply, clusters, replaces
from guardrails.verdict import Action, Failure, Finding, Verdict
from tests.guardrails.test_verdict import findings


def finding(
    start: int, end: int, action: Action = Action.REDACT, to: str | None = None, mask: bool = False
) -> Finding:
    return Finding(start, end, "g", "NAME", 1.0, action, to, mask)


def test_each_finding_is_replaced_in_its_place() -> None:
    verdict = Verdict.of([finding(0, 2, to="<1>"), finding(3, 5), finding(5, 6, to="")])
    assert apply("ab cdef", verdict) == "<1> [NAME]f"


def test_overlapping_findings_are_replaced_once_by_the_strongest_then_longest_then_first() -> None:
    text = "0123456789"
    assert apply(text, Verdict.of([finding(1, 4, to="A"), finding(3, 8, to="B")])) == "0B89"
    assert apply(text, Verdict.of([finding(1, 4, to="A"), finding(3, 6, to="B")])) == "0A6789"
    strong = finding(7, 9, Action.REWRITE, "C")
    assert apply(text, Verdict.of([finding(1, 4, to="A"), finding(3, 8, to="B"), strong])) == "0C9"
    assert apply(text, Verdict.of([finding(1, 4, to="A"), finding(4, 6, to="B")])) == "0AB6789", (
        "touching is not overlapping"
    )


def test_a_withholding_finding_cuts_at_its_start_and_what_starts_later_counts_for_nothing() -> None:
    cut = finding(5, 6, Action.BLOCK)
    assert apply("0123456789", Verdict.of([cut, finding(7, 8)])) == "01234"
    assert apply("0123456789", Verdict.of([cut, finding(3, 8, to="A")])) == "012A", "it began before the cut"
    assert (
        apply("0123456789", Verdict.of([cut, finding(3, 6, to="A"), finding(5, 9, Action.REWRITE, "B")]))
        == "012A"
    )
    assert apply("0123456789", Verdict.of([cut, finding(2, 2, Action.ESCALATE)])) == "01"


def test_masks_stand_for_the_whole_cluster() -> None:
    asked = []

    def mask(entity_type: str, value: str) -> str:
        asked.append((entity_type, value))
        return "<NAME_1>"

    verdict = Verdict.of([finding(1, 5, mask=True), finding(4, 7)])
    assert apply("0123456789", verdict, mask) == "0<NAME_1>789"
    assert asked == [("NAME", "123456")]
    assert apply("0123456789", verdict) == "0[NAME]789", "without a vault the value still goes"


def test_a_failure_lets_nothing_pass_unless_it_may() -> None:
    assert apply("text", Verdict.of(failures=[Failure("g", "timeout", Action.BLOCK)])) == ""
    assert apply("text", Verdict.of(failures=[Failure("g", "timeout", Action.ALLOW)])) == "text"


@given(st.lists(findings, max_size=6), st.randoms())
def test_the_outcome_does_not_depend_on_the_order_of_findings(found: list[Finding], random: object) -> None:
    changing = [f for f in found if replaces(f)]
    shuffled = list(changing)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    changes = clusters(changing)
    assert clusters(shuffled) == changes
    for before, after in pairwise(changes):
        assert before.end <= after.start
    covered = {at for f in changing for at in range(f.start, f.end)}
    assert covered == {at for change in changes for at in range(change.start, change.end)}
    assert all(change.finding in changing for change in changes)
