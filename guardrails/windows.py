"""What classifiers read: pieces of a text with some of what surrounds them, the same for every guard.

Guards that ask the same servable about the same text share one pass, so all of them cut texts here.
A piece is what a score counts for; the window around it is what the classifier sees, so that a meaning
that spans two pieces isn't cut in two.

* Replies are cut into segments as they grow (`guardrails.segments`); a window adds what came before.
* Inputs, and whole documents, are cut when they are complete, into long windows that overlap both ways:
  one for nearly every message, and an attack spread over several sentences stays in one piece.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from guardrails.guard import Context
from guardrails.in_context import Excerpt
from guardrails.normalize import charwise
from guardrails.segments import Segmenter
from guardrails.views import View, views

# In characters. Short sentences are joined, and ten words before them are shown: half a classifier's time
# would go into re-reading otherwise. Of what is complete, 200 words at a time.
SHORTEST_SEGMENT = 60
SEGMENT_CONTEXT = 60
WHOLE_PIECE = 1_000
WHOLE_OVERLAP = 200
# What is no longer than this is read at once only: there is little beside a sentence to hide it.
SHORT = 300


@dataclass(frozen=True, slots=True)
class Window:
    """`text` is the examined text's `[left, left + len(text))`; its score counts for `[start, end)`.

    `context` says that what is before `start` is there to be understood by, and not to be scored.
    """

    start: int
    end: int
    left: int
    text: str
    context: bool

    @property
    def excerpt(self) -> Excerpt:
        """What a classifier is asked: the window in its normal form."""
        before = len(charwise(self.text[: self.start - self.left]).text) if self.context else 0
        return Excerpt(charwise(self.text).text, before)

    @property
    def scored(self) -> str:
        """The part of it that is scored."""
        return self.text[self.start - self.left :] if self.context else self.text

    def asked(self, heads: tuple[str, ...]) -> Excerpt:
        """The same, with the `heads` that are of interest where the text is what it seems: an early exit is
        asked about no odd characters, and about nothing that can be read in a second way."""
        hidden = not heads or odd(self.text) or disguises(self.scored)
        return self.excerpt if hidden else self.excerpt._replace(heads=heads)

    def sentences(self) -> list[Window]:
        """The window cut as replies are, if it is a long one of a complete text."""
        if self.context or len(self.text) <= SHORT:
            return []
        segments = Segmenter(SHORTEST_SEGMENT).advance(self.text, final=True)
        return [_segment(self.text, start, end) for start, end in segments if self.text[start:end].strip()]


_ODD = re.compile("[^\x00-\x7f\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u00a0]")
"""Whatever is neither ASCII nor what typewriters' quotes, dashes and blanks are set as."""


def odd(text: str) -> bool:
    """Whether there are characters in `text` that ordinary English is not written in."""
    return not text.isascii() and _ODD.search(text) is not None


@lru_cache(maxsize=16)
def _hidden(text: str) -> tuple[View, ...]:
    """Remembered for as long as the guards of one text take to ask."""
    return tuple(views(text)[1:])


def disguises(text: str) -> tuple[str, ...]:
    """What disguises hide in `text`."""
    return tuple(view.text for view in _hidden(text))


def spaced_out(text: str) -> bool:
    """Whether `text` is written in single letters, with wider gaps between words: then its second reading is
    all that it says. A model takes a row of letters for an attack, whatever they spell."""
    meant = next((view.text for view in _hidden(text) if view.name == "spacing"), None)
    if meant is None:
        return False
    pieces, words = text.split(), meant.split()
    single = sum(len(piece) == 1 for piece in pieces)
    told = len(words) > 1 and len(meant) <= _LONGEST_MEAN * len(words)
    return told and single >= _SPACED_SHARE * len(pieces)


_SPACED_SHARE = 0.9
_LONGEST_MEAN = 10
"""Characters to a word: above it the gaps between words were not told from those between letters."""


class Windows:
    """The windows of one growing text."""

    __slots__ = ("_segmenter", "_settled")

    def __init__(self, context: Context, *, whole: bool) -> None:
        self._segmenter = None if whole or context.stage == "input" else Segmenter(SHORTEST_SEGMENT)
        self._settled = 0

    def advance(self, text: str, final: bool) -> tuple[list[Window], int]:
        """The windows that have become complete, and the offset before which no further piece starts."""
        if self._segmenter is None:
            windows = _whole(text) if final else []
        else:
            segments = self._segmenter.advance(text, final)
            windows = [_segment(text, start, end) for start, end in segments]
            self._settled = segments[-1][1] if segments else self._settled
        if final:
            self._settled = len(text)
        return [window for window in windows if text[window.start : window.end].strip()], self._settled


def _segment(text: str, start: int, end: int) -> Window:
    left = word_start(text, start - SEGMENT_CONTEXT, start)
    return Window(start, end, left, text[left:end], context=True)


def _whole(text: str) -> list[Window]:
    """Pieces that cover the text, cut between words where there are any, with windows that overlap."""
    windows = []
    start = 0
    while start < len(text):
        end = len(text)
        if end - start > WHOLE_PIECE + WHOLE_OVERLAP:
            end = word_start(text, start + WHOLE_PIECE, start + WHOLE_PIECE + WHOLE_OVERLAP)
        left = word_start(text, start - WHOLE_OVERLAP, start)
        right = min(len(text), end + WHOLE_OVERLAP)
        windows.append(Window(start, end, left, text[left:right], context=False))
        start = end
    return windows


def word_start(text: str, low: int, high: int) -> int:
    """The first offset in `[low, high)` at which a word begins after white space; `low` if there is none."""
    if low <= 0:
        return 0
    for at in range(low, high):
        if text[at - 1].isspace() and not text[at].isspace():
            return at
    return low
