"""Cutting a growing text into segments that can be judged by themselves: sentences, more or less.

Where a segment ends is a function of the text alone, and is known as soon as the character before the
boundary has arrived: the boundaries of a text are a beginning of the boundaries of every longer one. A
classifier that judges segment by segment thus gives the same verdicts however the text was cut into chunks.
"""

from __future__ import annotations

import regex

# The last character of a segment. Full-width sentence ends need no white space after them. Only the text
# before it is looked at, so that nothing needs to be awaited.
_END = regex.compile(r"""(?<=[.!?…][\])}"'”’»*_]{0,4})\s|\n|[。！？｡．]""")
_LAST_SPACE = regex.compile(r"(?r)\s")


class Segmenter:
    """One growing text.

    A segment ends with the white space after a sentence's end, or with a newline, once it has `shortest`
    characters; one that gets to `longest` is cut after its last white space, or hard if that would make it
    shorter than `shortest`.
    """

    __slots__ = ("_longest", "_seen", "_shortest", "_start")

    def __init__(self, shortest: int = 24, longest: int = 320) -> None:
        if not 0 < shortest < longest:
            raise ValueError(f"segments need 0 < shortest < longest, got {shortest} and {longest}")
        self._shortest, self._longest = shortest, longest
        self._start = 0  # of the segment that is open
        self._seen = 0  # up to here there is no boundary in it

    def advance(self, text: str, final: bool) -> list[tuple[int, int]]:
        """The segments that are complete now, as spans: together they cover the text without a gap.

        `text` is all that has arrived; with `final` the rest is a segment too, however short.
        """
        segments = []
        while (end := self._boundary(text)) is not None:
            segments.append((self._start, end))
            self._start = self._seen = end
        if final and self._start < len(text):
            segments.append((self._start, len(text)))
            self._start = self._seen = len(text)
        return segments

    def _boundary(self, text: str) -> int | None:
        furthest = self._start + self._longest
        first = max(self._seen, self._start + self._shortest - 1)
        end = _END.search(text, first) if first < len(text) else None
        if end is not None and end.end() <= furthest:
            return end.end()
        if len(text) < furthest:
            self._seen = len(text)
            return None
        space = _LAST_SPACE.search(text, self._start + self._shortest - 1, furthest)
        return furthest if space is None else space.end()
