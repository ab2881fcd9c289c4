"""Placeholders for what must not reach the model, and the way back into the reply.

One vault serves one request and dies with it: what it holds can't reach another request.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator

import regex

_PLACEHOLDER = regex.compile(r"<([A-Za-z][A-Za-z0-9_]*)_([0-9]{1,9})>")


class Vault:
    """Values and the placeholders that stand for them, such as `<EMAIL_ADDRESS_1>`.

    texts: everything that the request sends to the model. Placeholder-like words that already occur there
    are never given out, so that what a user typed (or a document holds) can't be turned into a value.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._taken = {
            word.group().lower() for text in texts if "<" in text for word in _PLACEHOLDER.finditer(text)
        }
        self._placeholders: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._sorted: list[str] = []
        self._last: defaultdict[str, int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._values)

    def placeholder(self, entity_type: str, value: str) -> str:
        """What stands for `value`; the same for the same value of the same type."""
        key = (entity_type, value)
        known = self._placeholders.get(key)
        if known is not None:
            return known
        label = _label(entity_type)
        for number in _after(self._last[label]):
            placeholder = f"<{label}_{number}>"
            folded = placeholder.lower()
            if folded not in self._taken:
                break
        self._last[label] = number
        self._placeholders[key] = placeholder
        self._values[folded] = value
        insort(self._sorted, folded)
        return placeholder

    def value(self, placeholder: str) -> str | None:
        """What `placeholder` stands for, in whatever case it is written; None if it stands for nothing."""
        return self._values.get(placeholder.lower())

    def may_begin(self, text: str) -> bool:
        """Whether `text` is the beginning, but not the whole, of a placeholder that was given out."""
        folded = text.lower()
        index = bisect_left(self._sorted, folded)
        if index < len(self._sorted) and self._sorted[index] == folded:
            index += 1
        return index < len(self._sorted) and self._sorted[index].startswith(folded)


class Unmasker:
    """Puts values back into one channel of a reply while it streams.

    What comes out, joined, depends only on what went in, joined. Held back is only a suffix that may still
    become one of the vault's placeholders: nothing at all where no `<` stands. A value is put in as it is
    and not looked at again, so that a value which looks like a placeholder stays what it is.

    json_strings: the channel carries JSON (a tool call's arguments), in which placeholders stand inside of
    strings; values are escaped accordingly.
    """

    def __init__(self, vault: Vault, *, json_strings: bool = False) -> None:
        self._vault = vault
        self._json_strings = json_strings
        self._held = ""

    def feed(self, text: str, final: bool = False) -> str:
        """Takes the next piece of the reply; returns what may go out."""
        if not self._vault:
            return text
        text = self._held + text
        self._held = ""
        if "<" not in text:
            return text
        if not final:
            begin = text.rfind("<")
            if self._vault.may_begin(text[begin:]):
                text, self._held = text[:begin], text[begin:]
        return _PLACEHOLDER.sub(self._restore, text)

    def _restore(self, match: regex.Match[str]) -> str:
        value = self._vault.value(match.group())
        if value is None:
            return match.group()
        return json.dumps(value, ensure_ascii=False)[1:-1] if self._json_strings else value


def _label(entity_type: str) -> str:
    label = regex.sub(r"[^A-Z0-9_]", "_", entity_type.upper())
    return label if label[:1].isalpha() else f"X{label}"


def _after(number: int) -> Iterator[int]:
    while True:
        number += 1
        yield number
