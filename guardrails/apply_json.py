"""`guardrails.apply` for texts that are JSON and must stay it: the arguments of tool calls."""

from __future__ import annotations

import json
from collections.abc import Iterable

from guardrails.apply import Mask, clusters, replaces
from guardrails.json_text import GrowingJson, Piece
from guardrails.verdict import Verdict


def apply_json(raw: str, verdict: Verdict, mask: Mask | None = None) -> str:
    """`raw` as `verdict` lets it pass, replaced within its strings and in the place of whole numbers.

    What a mask remembers is the decoded value. A finding that stands for no value (an empty object) is
    replaced as in any other text.
    """
    if any(failure.action.withholds for failure in verdict.failures):
        return ""
    reader = GrowingJson()
    reader.grow(raw, True)
    cut = min((f.start for f in verdict.findings if f.action.withholds), default=len(raw))
    at, out = 0, []
    for change in clusters(f for f in verdict.findings if f.start < cut and replaces(f)):
        pieces = list(reader.raw_pieces(change.start, change.end))
        finding = change.finding
        if finding.mask and mask is not None:
            shown = mask(finding.entity_type, _decoded(raw, pieces))
        else:
            shown = change.replacement(raw)
        for index, piece in enumerate(pieces or [Piece(change.start, change.end, False)]):
            if piece.start >= at:
                text = shown if index == 0 or piece.scalar else ""
                out += [raw[at : piece.start], piece.encode(text)]
                at = piece.end
    return "".join([*out, raw[at:cut]])


def _decoded(raw: str, pieces: Iterable[Piece]) -> str:
    return " ".join(_value(raw[p.start : p.end], p.scalar) for p in pieces)


def _value(text: str, scalar: bool) -> str:
    """What a piece of the text says; as it stands where it is no JSON."""
    try:
        return text if scalar else str(json.loads(f'"{text}"'))
    except ValueError:
        return text
