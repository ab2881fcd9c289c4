"""Text as a reader takes it, for guards that look for words: without look-alikes and invisible characters.

`charwise` maps each character by itself, so that the normal form of a text's beginning is a beginning of
its normal form: safe on streams. ASCII maps to itself. Every position keeps its place in the original.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from guardrails.confusables import FILLERS, LOOK_ALIKES

_REMEMBERED = 16_384
_LATIN = re.compile(
    r"(?:LATIN (?P<case>SMALL|CAPITAL) LETTER|LATIN LETTER SMALL CAPITAL|REGIONAL INDICATOR SYMBOL LETTER"
    r"|(?:NEGATIVE |CROSSED NEGATIVE )?(?:CIRCLED|SQUARED) LATIN (?:CAPITAL|SMALL) LETTER)"
    r" (?P<letter>[A-Z])(?: WITH .*)?"
)


@dataclass(frozen=True, slots=True)
class Normalized:
    """A normal form. `offsets[i]` is where in the original `text[i]` came from; None: nothing changed."""

    text: str
    offsets: Sequence[int] | None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The original characters that `text[start:end]` (not empty) came from."""
        if self.offsets is None:
            return start, end
        return self.offsets[start], self.offsets[end - 1] + 1


def charwise(text: str) -> Normalized:
    """The normal form of `text`: compatibility forms, accents, look-alikes and digits folded to ASCII where
    there is one, spaces and dashes unified, everything invisible removed."""
    if text.isascii():
        return Normalized(text, None)
    folded = text.translate(_FOLDS)
    if folded == text:
        return Normalized(text, None)
    offsets: list[int] = []
    for index, char in enumerate(text):
        width = 1 if char < "\x80" else len(_FOLDS[ord(char)])
        if width == 1:
            offsets.append(index)
        else:
            offsets += [index] * width
    return Normalized(folded, offsets)


class GrowingNormal:
    """The normal form of a text that grows: only what is new is mapped. `text` and `offsets` as above."""

    __slots__ = ("_seen", "offsets", "text")

    def __init__(self, same: str) -> None:
        """`same` is the beginning, which is its own normal form."""
        self.text = same
        self.offsets = list(range(len(same)))
        self._seen = len(same)

    def grow(self, text: str) -> None:
        """Take the text that has arrived by now."""
        seen, new = self._seen, charwise(text[self._seen :])
        self.text += new.text
        if new.offsets is None:
            self.offsets += range(seen, len(text))
        else:
            self.offsets += [seen + offset for offset in new.offsets]
        self._seen = len(text)

    def original(self, position: int) -> int:
        """The offset in the original up to which the characters before `position` reach."""
        return self.offsets[position] if position < len(self.offsets) else self._seen

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The original characters that `text[start:end]` (not empty) came from."""
        return self.offsets[start], self.offsets[end - 1] + 1


class _Folds(dict[int, str]):
    """What each character becomes, worked out when it is first met; bounded, for texts choose the keys."""

    def __missing__(self, code: int) -> str:
        folded = chr(code) if code < 0x80 else _fold(chr(code))
        if len(self) < _REMEMBERED:
            self[code] = folded
        return folded


def _fold(char: str) -> str:
    if char in LOOK_ALIKES:
        return LOOK_ALIKES[char]
    category = unicodedata.category(char)
    # Format characters (zero width, bidirectional, tags), variation selectors, combining marks.
    if category in ("Cf", "Mn", "Me") or char in FILLERS:
        return ""
    if category == "Zs" or char == "\u2800":
        return " "
    if category in ("Zl", "Zp"):
        return "\n"
    if category == "Nd":
        return str(unicodedata.digit(char))
    if category == "Pd":
        return "-"
    decomposed = unicodedata.normalize("NFKD", char)
    if decomposed != char:
        return "".join(c if c < "\x80" else _fold(c) for c in decomposed)
    latin = _LATIN.fullmatch(unicodedata.name(char, ""))
    if latin is None:
        return char
    return (
        latin["letter"].lower()
        if latin["case"] == "SMALL" or "SMALL CAPITAL" in latin[0]
        else latin["letter"]
    )


_FOLDS = _Folds()
