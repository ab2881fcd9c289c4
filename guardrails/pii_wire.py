"""What travels between the PII guard in the gateway and Presidio in a worker; imports neither."""

from __future__ import annotations

from typing import NamedTuple


class CandidatePattern(NamedTuple):
    """An expression of one of Presidio's recognizers, in the syntax of the `regex` package.

    `after`: how many characters after a match the recognizer looks at.
    """

    entity_type: str
    source: str
    after: int


class Candidate(NamedTuple):
    """A match of the expression at place `pattern` of the servable's description, in the window's offsets."""

    pattern: int
    start: int
    end: int


class Cluster(NamedTuple):
    """Overlapping candidates, judged together, in a window that begins before them with their context."""

    window: str
    candidates: tuple[Candidate, ...]
    threshold: float


class Found(NamedTuple):
    """A recognizer's result, in the window's offsets; Presidio's fields."""

    entity_type: str
    start: int
    end: int
    score: float
