"""What revision has made, kept as preference data: the revision is chosen over the reply that it mended.

A row is one that `keel-train feedback` reads (docs/training/feedback.md), in a file for each day. What the
policy's pii guards find in it is replaced before it is written, whatever their action is for replies; where
one of them fails, nothing is written. Placeholders of masked values are kept, their values are nowhere here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson
import structlog

from guardrails.guard import JobRunner
from service.redaction import own_guards, redact

if TYPE_CHECKING:  # the catalog makes strategies, which know this module
    from service.catalog import Served

logger = structlog.get_logger(__name__)

WRITE_SECONDS = 2.0
ROLES = ("system", "user", "assistant")

Outcome = Literal["stored", "unfit", "failed"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to one conversation, of which the second was made from the first to keep to `objective`."""

    conversation: Sequence[Mapping[str, Any]]
    rejected: str
    chosen: str
    objective: str
    judge: str
    checkpoint: str

    @property
    def fit(self) -> bool:
        """Whether it is a preference that can be trained on: texts alone, the user's turn last."""
        turns = [turn for turn in self.conversation if turn["role"] != "system"]
        in_turn = all(
            turn["role"] == ("user", "assistant")[index % 2] and turn["content"].strip() and len(turn) == 2
            for index, turn in enumerate(turns)
        )
        systems = [index for index, turn in enumerate(self.conversation) if turn["role"] == "system"]
        texts = {self.rejected.strip(), self.chosen.strip()}
        return (
            in_turn and len(turns) % 2 == 1 and systems in ([], [0]) and "" not in texts and len(texts) == 2
        )


class PairStore:
    """Writes pairs to `folder`."""

    def __init__(self, folder: Path, runner: JobRunner) -> None:
        self._folder = folder
        self._runner = runner
        self._writing = asyncio.Lock()

    async def store(self, pair: Pair, served: Served) -> Outcome:
        """Write a pair, unless it can't be trained on. A failure costs the pair, never the reply."""
        if not pair.fit:
            return "unfit"
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                texts = await self._redacted(pair, served)
                if texts is None:
                    return "failed"
                async with self._writing:
                    await asyncio.to_thread(self._write, _row(pair, texts, served))
        except (OSError, TimeoutError) as error:
            logger.warning("revised_pair_not_stored", error=type(error).__name__)
            return "failed"
        return "stored"

    async def _redacted(self, pair: Pair, served: Served) -> list[str] | None:
        """The pair's texts, the conversation's first, as they may be kept; None where that isn't sure."""
        texts = [*(turn["content"] for turn in pair.conversation), pair.rejected, pair.chosen]
        guards = own_guards(served.spec, served.guards, ("pii",))
        kept = await redact(texts, guards, self._runner, served.policy.digest)
        return None if kept is None else [one.text for one in kept]

    def _write(self, row: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"revised-{datetime.now(UTC):%Y-%m-%d}.jsonl"
        # One write of whole lines to a file that is only appended to: no two processes mix their rows.
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, row)
        finally:
            os.close(file)


def _row(pair: Pair, texts: Sequence[str], served: Served) -> bytes:
    *said, rejected, chosen = texts
    turns = [
        {"role": turn["role"], "content": text} for turn, text in zip(pair.conversation, said, strict=True)
    ]
    row = {
        "kind": "preference",
        "prompt": turns[0]["content"] if len(turns) == 1 else turns,
        "chosen": chosen.strip(),
        "rejected": rejected.strip(),
        "objective": pair.objective,
        "rater": f"judge: {pair.judge}",
        "origin": "revision",
        "checkpoint": pair.checkpoint,
        "policy": served.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
