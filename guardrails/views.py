"""Other ways to read a text, for classifiers: what a model or a person would make of it after undoing the
usual disguises. Each view says which part of the original its text came from.

A view is made only where a cheap look finds a reason for it; ordinary prose has one, its normal form.
Views are for whole texts and segments: what a view reads depends on its surroundings.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from guardrails.normalize import charwise

MOST_VIEWS = 8
MOST_CHARACTERS = 20_000
"""Of decoded text in one view."""

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class View:
    """`text` is a reading of the original; `map_span(start, end)` says which original characters
    `text[start:end]` (not empty) was read from."""

    name: str
    text: str
    map_span: Callable[[int, int], Span] = field(repr=False, compare=False)


def views(text: str) -> list[View]:
    """The normal form first; then, at most `MOST_VIEWS` in all, what disguises hide."""
    normal = charwise(text)
    first = View("normal", normal.text, normal.span)
    found = [first]
    for view in _others(text, first):
        if all(view.text != other.text for other in found):
            found.append(view)
        if len(found) >= MOST_VIEWS:
            break
    return found


def _others(text: str, first: View) -> Iterator[View]:
    for disguise in (_tags(text), _spaced(first), _leet(first)):
        if disguise is not None:
            yield disguise
    decoded = list(_payloads(first))
    yield from decoded
    for payload in decoded:
        yield from _payloads(payload)
    rotated = _rot13(first)
    if rotated is not None:
        yield rotated


def _tags(text: str) -> View | None:
    """Tag characters (U+E0020 to U+E007E) are invisible, and read by models as the ASCII they mirror."""
    if text.isascii():
        return None
    places = [index for index, char in enumerate(text) if "\U000e0020" <= char <= "\U000e007e"]
    if len(places) < 4:
        return None
    hidden = "".join(chr(ord(text[index]) - 0xE0000) for index in places)
    return View("tags", hidden, lambda s, e: (places[s], places[e - 1] + 1))


_SPACED = re.compile(r"(?<![^\W_])[^\W_](?:[ \t._*|/-]{1,3}[^\W_](?![^\W_])){3,}")


def _spaced(view: View) -> View | None:
    """`i g n o r e  a l l` or `i.g.n.o.r.e`: single letters; a wider gap than most is a gap between words."""
    edits = []
    for run in _SPACED.finditer(view.text):
        at = run.start()
        gaps = [gap.span() for gap in re.finditer(r"[\W_]+", run[0])]
        shortest = min(end - start for start, end in gaps)
        for start, end in gaps:
            edits.append((at + start, at + end, " " if end - start > shortest else ""))
    return _edited("spacing", view, edits) if edits else None


_LEET = dict(zip("0134578@$!|", "oieastbasil", strict=True))
_LEET_WORD = re.compile(r"(?<![\w@$!|.:/#-])[A-Za-z0134578@$!|]{3,}(?![\w@$|]|[.:/-]\w)")
_ANY_LEET = re.compile(r"(?<!\w)[A-Za-z0134578@$|][A-Za-z0134578@$!|]*(?!\w)")
_SIGN_BEFORE_LETTER = re.compile(r"[0134578@$!|][A-Za-z]")
# Amounts (`10km`, `2nd`), numbers (`0x1F`, `1e10`), models (`GPT4o`) and the usual short forms.
_NO_LEET = re.compile(
    r"(?i:[\d@$!|]+(?:st|nd|rd|th|s|k|m|x|d|h|am|pm|[kcm]?m|[km]?g|m?l|[kmgt]?b|[kmg]?hz|ms|min|sec|bit|px|pt)"
    r"|0x[\da-f]+|\d+e\d+|k8s|i18n|l10n|a11y)|[A-Z]{2,}\d+[a-z]"
)
CLEAR_LEET = 3
"""From so many words in leetspeak on, if they are a third of all, everything that may be read so is."""


def _leet(view: View) -> View | None:
    """`1gn0r3 4ll`: digits and signs among a word's letters. Not `mp3`, `covid19`, `10km` or `2nd`, but where
    the text is plainly written so: `h0w 70 57op 17` has numbers for words."""
    words = [
        (match.start(), word)
        for match in _LEET_WORD.finditer(view.text)
        if _SIGN_BEFORE_LETTER.search(word := match[0].rstrip("!")) and not _NO_LEET.fullmatch(word)
    ]
    if len(words) >= CLEAR_LEET and 3 * len(words) >= len(view.text.split()):
        words = [(match.start(), match[0].rstrip("!")) for match in _ANY_LEET.finditer(view.text)]
    edits = [
        (at + i, at + i + 1, "l" if "11" in (word[i - 1 : i + 1], word[i : i + 2]) else _LEET[char])
        for at, word in words
        for i, char in enumerate(word)
        if char in _LEET
    ]
    return _edited("leetspeak", view, edits) if edits else None


def _edited(name: str, view: View, edits: list[tuple[int, int, str]]) -> View:
    """`view` with some spans replaced by at most one character each."""
    pieces, offsets, at = [], [], 0
    for start, end, new in edits:
        pieces += [view.text[at:start], new]
        offsets += [*range(at, start), *([start] if new else [])]
        at = end
    pieces.append(view.text[at:])
    offsets += range(at, len(view.text))
    return View(name, "".join(pieces), lambda s, e: view.map_span(offsets[s], offsets[e - 1] + 1))


_ROT13_WORDS = re.compile(
    r"(?i)\b(?:gur|naq|lbh|lbhe|vtaber|vafgehpgvbaf?|cebzcg|flfgrz|cerivbhf|cyrnfr|ubj|jung|jvgu|guvf|gung)\b"
)


def _rot13(view: View) -> View | None:
    """Told by two different common words in rot13."""
    hits = {match[0].lower() for match in _ROT13_WORDS.finditer(view.text)}
    return View("rot13", codecs.encode(view.text, "rot13"), view.map_span) if len(hits) >= 2 else None


_BASE64 = re.compile(
    r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}+={0,2}"
    r"(?:\r?\n(?:[A-Za-z0-9+/_-]{4,}+={0,2}|[A-Za-z0-9+/_-]{1,3}={1,2}))*+"
)
_HEX = re.compile(r"(?i)(?<![0-9a-z])(?:0x)?(?:[0-9a-f]{2}[ :,]?){8,}(?![0-9a-z])|(?:\\x[0-9a-f]{2}){4,}")
_PERCENT = re.compile(r"(?<![\w.~+/?=&%-])(?:[\w.~+/?=&-]*+%[0-9A-Fa-f]{2}){3,}+[\w.~+/?=&-]*+")
_ENTITIES = re.compile(r"(?i)(?:&#(?:\d{2,7}|x[0-9a-f]{2,6});){4,}")


def _payloads(view: View) -> Iterator[View]:
    """Text that was encoded, each decoded by itself; what decodes to no text isn't one."""
    text = view.text
    if len(text) < 12:
        return
    for name, found, decode in (
        ("base64", _BASE64, _from_base64),
        ("hex", _HEX, _from_hex),
        ("percent", _PERCENT, urllib.parse.unquote_plus),
        ("entities", _ENTITIES, _from_entities),
    ):
        for match in found.finditer(text):
            decoded = decode(match[0])
            if decoded and decoded != match[0] and _is_text(decoded):
                yield View(name, decoded[:MOST_CHARACTERS], _always(view.map_span(*match.span())))


def _always(span: Span) -> Callable[[int, int], Span]:
    return lambda start, end: span


def _from_base64(text: str) -> str:
    """A word on the next line may have been taken for a part of it: then the first line alone counts."""
    whole = _one_base64(re.sub(r"\s", "", text))
    return whole if _is_text(whole) or "\n" not in text else _one_base64(text.split()[0])


def _one_base64(text: str) -> str:
    packed = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    usable = packed[: len(packed) - (len(packed) % 4 == 1)]
    try:
        return _utf8(base64.b64decode(usable + "=" * (-len(usable) % 4)))
    except (binascii.Error, ValueError):
        return ""


def _from_hex(text: str) -> str:
    digits = re.sub(r"(?i)^0x|\\x|[ :,]", "", text)
    try:
        return _utf8(bytes.fromhex(digits))
    except ValueError:
        return ""


def _from_entities(text: str) -> str:
    codes = [int(c[1:], 16) if c[0] in "xX" else int(c) for c in re.findall(r"&#(\w+);", text)]
    return "".join(chr(code) for code in codes if code < 0x110000)


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        # A last character may have been cut off with the padding.
        return raw[: error.start].decode("utf-8") if error.start >= len(raw) - 3 else ""


def _is_text(decoded: str) -> bool:
    """Whether a person could have written it: printable, mostly letters, and with a word in it."""
    plain = decoded.translate({9: " ", 10: " ", 13: " "})
    good = sum(char.isalpha() or char in " .,;:!?'\"()-" for char in plain)
    return plain.isprintable() and good >= 0.85 * len(plain) and re.search(r"[^\W\d_]{3}", plain) is not None
