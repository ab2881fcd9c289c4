"""`guardrails.apply` for texts that are JSON and must stay it: the arguments of earlier tool calls."""

from __future__ import annotations

import json
from collections.abc import Iterable

from guardrails.apply import Mask, apply, clusters, replaces
from guardrails.json_text import JsonText, Piece
from guardrails.verdict import Verdict


def apply_json(raw: str, verdict: Verdict, mask: Mask | None = None) -> str:
    """`raw` as `verdict` lets it pass, replaced within its strings and in the place of whole numbers.

    What a mask remembers is the decoded value. A text that isn't JSON, or in which something withholds, is
    treated as any other.
    """
    if verdict.action.withholds:
        return apply(raw, verdict, mask)
    try:
        document = JsonText(raw)
    except (ValueError, RecursionError):
        return apply(raw, verdict, mask)
    at, out = 0, []
    for change in clusters(finding for finding in verdict.findings if replaces(finding)):
        pieces = list(document.raw_pieces(change.start, change.end))
        if not pieces:
            return apply(raw, verdict, mask)
        finding = change.finding
        if finding.mask and mask is not None:
            shown = mask(finding.entity_type, _decoded(raw, pieces))
        else:
            shown = change.replacement(raw)
        for index, piece in enumerate(pieces):
            if piece.start >= at:
                text = shown if index == 0 or piece.scalar else ""
                out += [raw[at : piece.start], piece.encode(text)]
                at = piece.end
    return "".join([*out, raw[at:]])


def _decoded(raw: str, pieces: Iterable[Piece]) -> str:
    parts = (raw[p.start : p.end] if p.scalar else json.loads(f'"{raw[p.start : p.end]}"') for p in pieces)
    return " ".join(parts)
