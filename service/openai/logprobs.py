"""Which log-probability entry belongs to which characters of a reply.

An engine may send entries ahead of the text that they are about: vLLM holds text back while it could still
become a stop string, or while a character's bytes are incomplete. An entry names its token, so entries that
run ahead would give away what the guards have yet to see. `Aligner` pairs each entry with exactly the
characters that it stands for; entries that have none (end markers, stop strings) are dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """One token's log probabilities. `value` is what the API calls them, `data` the token's bytes."""

    value: Any
    data: bytes


@dataclass(frozen=True, slots=True)
class Paired:
    """A piece of text, and the entries that stand for it and for nothing else."""

    text: str
    entries: tuple[Entry, ...] = ()


class Aligner:
    """Pairs the text and the entries of one choice, both of which may come in any pieces."""

    def __init__(self) -> None:
        self._waiting: deque[Entry] = deque()
        self._begun = 0  # bytes of the first waiting entry that went out already

    @property
    def waiting(self) -> bool:
        """Whether entries wait for their text."""
        return bool(self._waiting)

    def feed(self, text: str, entries: Iterable[Entry]) -> list[Paired]:
        """`text` in pieces, in order and complete, with the entries that could be paired."""
        self._waiting.extend(entry for entry in entries if entry.data)
        pieces: list[Paired] = []
        rest = text.encode("utf-8", "surrogatepass")
        while rest and self._waiting:
            taken = self._take(rest)
            if taken is None:
                self._waiting.popleft()
                self._begun = 0
                continue
            size, found = taken
            if size == 0:
                break
            pieces.append(Paired(rest[:size].decode("utf-8", "surrogatepass"), found))
            rest = rest[size:]
        if rest:
            pieces.append(Paired(rest.decode("utf-8", "surrogatepass")))
        return pieces

    def _take(self, rest: bytes) -> tuple[int, tuple[Entry, ...]] | None:
        """How many bytes go with the first entries; None where the first entry can't stand here.

        Several tokens may share one character: then they go together.
        """
        size, begun = 0, self._begun
        for count, entry in enumerate(self._waiting):
            data = entry.data[begun if count == 0 else 0 :]
            piece = rest[size : size + len(data)]
            if not data.startswith(piece) or not piece:
                return None if count == 0 else self._partial(rest, size)
            if len(piece) < len(data):
                # The text ends within this token: what follows of it comes later, and it is not paired.
                return self._partial(rest, len(rest)) if count == 0 else self._partial(rest, size)
            size += len(data)
            if _whole(rest, size):
                found = tuple(self._waiting.popleft() for _ in range(count + 1))
                self._begun = 0
                return size, () if begun else found  # of a token begun before, only the rest is here
        return self._partial(rest, len(rest))

    def _partial(self, rest: bytes, size: int) -> tuple[int, tuple[Entry, ...]]:
        """Give `size` bytes (rounded up to whole characters) without entries, and skip what they cover."""
        while not _whole(rest, size):
            size += 1
        left = size
        while left and self._waiting:
            room = len(self._waiting[0].data) - self._begun
            if room > left:
                self._begun += left
                break
            left -= room
            self._waiting.popleft()
            self._begun = 0
        return size, ()


def _whole(data: bytes, size: int) -> bool:
    """Whether `data[:size]` ends at a character's end."""
    return size >= len(data) or data[size] & 0xC0 != 0x80


def chat_entries(content: Sequence[Any] | None) -> list[Entry]:
    """The entries of a chat choice's `logprobs.content`."""
    entries = []
    for value in content or ():
        raw = value.get("bytes")
        data = (
            bytes(raw)
            if isinstance(raw, list)
            else str(value.get("token", "")).encode("utf-8", "surrogatepass")
        )
        entries.append(Entry(value, data))
    return entries


def completion_entries(logprobs: dict[str, Any] | None) -> list[Entry]:
    """The entries of a plain completion's `logprobs`, whose fields are parallel lists."""
    if not logprobs:
        return []
    tokens = logprobs.get("tokens") or []
    columns = {name: values for name, values in logprobs.items() if isinstance(values, list)}
    entries = []
    for row, token in enumerate(tokens):
        value = {name: values[row] for name, values in columns.items() if row < len(values)}
        entries.append(Entry(value, str(token).encode("utf-8", "surrogatepass")))
    return entries


def render_chat(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """`logprobs` of a chat choice."""
    return {"content": [entry.value for entry in entries], "refusal": None} if entries else None


def render_completion(entries: Sequence[Entry]) -> dict[str, Any] | None:
    """`logprobs` of a plain completion's choice."""
    if not entries:
        return None
    names = dict.fromkeys(name for entry in entries for name in entry.value)
    return {name: [entry.value.get(name) for entry in entries] for name in names}
