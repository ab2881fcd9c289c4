"""What guards have said about texts, remembered by content."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from guardrails.guard import Context
from guardrails.verdict import Finding


@dataclass(frozen=True, slots=True)
class Seen:
    """One guard's finished look at one text: all of its findings and scores."""

    findings: tuple[Finding, ...]
    scores: Mapping[str, float]


def content_key(policy_digest: str, context: Context, text: str) -> bytes:
    """SHA-256 of everything that a guard's answer may depend on."""
    fields = (
        policy_digest,
        context.stage,
        context.role,
        context.channel,
        context.tool_name or "",
        context.prompt,
    )
    said = (part for turn in context.turns for part in turn)
    head = "\0".join(f"{len(value)}:{value}" for value in (*fields, *said))
    hasher = hashlib.sha256(head.encode("utf-8", "surrogatepass"))
    hasher.update(b"\0\0")
    hasher.update(text.encode("utf-8", "surrogatepass"))
    return hasher.digest()


class VerdictCache:
    """Least recently used out first. Failures are never put in.

    Keys are digests: no text is kept. Bounded by entries and, because a text may hold any number of
    findings, by their approximate size in bytes.
    """

    _ENTRY_BYTES = 400
    _FINDING_BYTES = 200
    _SCORE_BYTES = 100

    def __init__(self, max_entries: int = 20_000, max_bytes: int = 16 * 1024 * 1024) -> None:
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._entries: OrderedDict[tuple[bytes, str], Seen] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, content: bytes, guard: str) -> Seen | None:
        """What `guard` said about `content` (see `content_key`)."""
        seen = self._entries.get((content, guard))
        if seen is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end((content, guard))
        return seen

    def put(self, content: bytes, guard: str, seen: Seen) -> None:
        size = self._size(seen)
        if size > self._max_bytes // 4:
            return
        former = self._entries.pop((content, guard), None)
        self.bytes += size - (self._size(former) if former else 0)
        self._entries[content, guard] = seen
        while len(self._entries) > self._max_entries or self.bytes > self._max_bytes:
            self.bytes -= self._size(self._entries.popitem(last=False)[1])

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0

    def _size(self, seen: Seen) -> int:
        return (
            self._ENTRY_BYTES
            + self._FINDING_BYTES * len(seen.findings)
            + self._SCORE_BYTES * len(seen.scores)
        )
