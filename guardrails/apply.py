"""What becomes of a text once its findings are known: the function G of the stream contract.

G(x) depends on x and the findings alone:

* it is cut at the smallest start of a finding (or failed region) that withholds; findings that start at
  or after the cut count for nothing;
* findings that replace text and overlap form one cluster, which is replaced as a whole, by the replacement
  of its strongest finding; among equals the longest decides, then the first, then the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from guardrails.verdict import Action, Finding, Verdict

Mask = Callable[[str, str], str]
"""From an entity type and the value that was found to the placeholder that stands for it."""


class Change(NamedTuple):
    """`text[start:end]` is replaced as a whole, by what `finding` says."""

    start: int
    end: int
    finding: Finding

    def replacement(self, text: str, mask: Mask | None = None) -> str:
        """What stands in the place of `text[start:end]`. Without a vault a mask shows the entity's type."""
        finding = self.finding
        if finding.mask and mask is not None:
            return mask(finding.entity_type, text[self.start : self.end])
        return f"[{finding.entity_type}]" if finding.replacement is None else finding.replacement


def replaces(finding: Finding) -> bool:
    """Whether a finding puts something in its span's place. An empty span has no place."""
    return Action.REDACT <= finding.action <= Action.REWRITE and finding.start < finding.end


def clusters(findings: Iterable[Finding]) -> list[Change]:
    """Replacing findings, merged where they overlap, in the order of the text."""
    changes: list[Change] = []
    for finding in sorted(findings):
        if changes and finding.start < changes[-1].end:
            last = changes[-1]
            winner = max(last.finding, finding, key=_precedence)
            changes[-1] = Change(last.start, max(last.end, finding.end), winner)
        else:
            changes.append(Change(finding.start, finding.end, finding))
    return changes


def _precedence(finding: Finding) -> tuple[object, ...]:
    return (
        finding.action,
        finding.end - finding.start,
        -finding.start,
        finding.score,
        finding.guard,
        finding.entity_type,
        finding.mask,
        finding.replacement is not None,
        finding.replacement or "",
    )


def apply(text: str, verdict: Verdict, mask: Mask | None = None) -> str:
    """`text` as `verdict` lets it pass.

    A failure has no place in the text: one that withholds lets nothing pass.
    """
    if any(failure.action.withholds for failure in verdict.failures):
        return ""
    cut = min((f.start for f in verdict.findings if f.action.withholds), default=len(text))
    at, pieces = 0, []
    for change in clusters(f for f in verdict.findings if f.start < cut and replaces(f)):
        pieces += [text[at : change.start], change.replacement(text, mask)]
        at = change.end
    pieces.append(text[at:cut])
    return "".join(pieces)
