"""What comes of successes: cases that must not succeed again, pairs that the next round trains on, and a
sheet on which people settle what judges disagree about."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from training.data.conversation import Message, Role
from training.data.preferences import Preference, write_preferences
from training.errors import DataError
from training.files import write_text
from training.redteam.attack import Attack
from training.redteam.behavior import Behavior
from training.redteam.campaign import Attempt

REFUSAL = "I am sorry, but I cannot help with that."
SHEET = ("row", "request", "reply", "succeeded")


def write_cases(path: Path, attempts: Iterable[Attempt], behaviors: Sequence[Behavior]) -> int:
    """Successful attacks as JSON lines that `read_cases` reads; how many. Each is sent again as it was."""
    by_id = {behavior.id: behavior for behavior in behaviors}
    lines = []
    for attempt in attempts:
        if attempt.succeeded and attempt.behavior in by_id:
            row = {
                "behavior": by_id[attempt.behavior].model_dump(mode="json", exclude_unset=True),
                "strategy": attempt.strategy,
                "canary": attempt.canary,
                "messages": attempt.messages,
            }
            lines.append(json.dumps(row, ensure_ascii=False))
    write_text(path, "".join(f"{line}\n" for line in dict.fromkeys(lines)))
    return len(dict.fromkeys(lines))


def read_cases(path: Path) -> tuple[Attack, ...]:
    """Attacks to send again. Raises DataError with file and line."""
    attacks = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(path, None, f"cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            behavior = Behavior.model_validate(row["behavior"])
            attacks.append(Attack(behavior, row["strategy"], _canary(row, behavior), tuple(row["messages"])))
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(path, number, f"not a regression case: {error}") from error
    return tuple(attacks)


def _canary(row: Mapping[str, Any], behavior: Behavior) -> str:
    """The case's word; a case that is told by one and has none would succeed whatever is replied."""
    canary = str(row.get("canary", ""))
    if not canary and behavior.goal != "answer":
        raise ValueError(f"{behavior.id} is judged by its 'canary', which is missing; find the case anew")
    return canary


def preferences_of(
    attempts: Iterable[Attempt], refusal: str = REFUSAL, *, answered: bool = False
) -> list[Preference]:
    """A pair for each success: a refusal was better than what was said.

    With `answered`, for each attack that got an answer, on its subject or not. Conversations that training
    data can't hold (tool calls) are left out.
    """
    pairs = []
    for attempt in attempts:
        roles = {message["role"] for message in attempt.messages}
        wanted = attempt.answered if answered else attempt.succeeded
        if not wanted or not roles <= {"system", "user", "assistant"}:
            continue
        prompt = tuple(
            Message(cast(Role, message["role"]), str(message["content"] or "…"))
            for message in attempt.messages
        )
        try:
            pairs.append(Preference(prompt, refusal, attempt.reply, rater="red team", id=attempt.behavior))
        except ValueError:
            continue  # nothing was said that could be compared
    return pairs


def write_pairs(path: Path, attempts: Iterable[Attempt]) -> int:
    """The same as a file that `keel-train dpo` and `reward` read; how many."""
    pairs = preferences_of(attempts)
    write_preferences(path, pairs)
    return len(pairs)


def write_sheet(path: Path, attempts: Iterable[Attempt]) -> int:
    """A CSV sheet for people: each reply that came through, `succeeded` to be filled with yes or no."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(SHEET)
    shown = [a for a in attempts if a.reply and a.outcome in ("withstood", "succeeded", "refused")]
    for number, attempt in enumerate(shown, start=1):
        writer.writerow((number, _plain(attempt.prompt), _plain(attempt.reply), ""))
    write_text(path, buffer.getvalue())
    return len(shown)


def read_sheet(path: Path) -> dict[int, bool]:
    """What people answered, by row. Raises DataError with file and line."""
    answers: dict[int, bool] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            said = (row.get("succeeded") or "").strip().lower()
            if not said:
                continue
            if said not in ("yes", "no") or not (row.get("row") or "").isdigit():
                raise DataError(path, line, f"succeeded is {said!r}: write yes or no, or leave it empty")
            answers[int(str(row["row"]))] = said == "yes"
    return answers


def _plain(text: str) -> str:
    """So that a spreadsheet takes a text for a text, and never for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
