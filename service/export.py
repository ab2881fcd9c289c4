"""Feedback, comparisons and reviews as rows of training data.

Feedback and comparisons are in the format of docs/training/feedback.md. Only what was kept with its text, and
only what can be trained on, becomes a row; everything else is counted by the reason why not.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import LABEL_STYLE_TABLENAME_PLUS_COL, ColumnElement, Text, cast, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.agreement import alpha
from service.pairing import RERANKED
from service.reviews import labels_of
from service.store.comparisons import judgements, pairs
from service.store.completions import completions
from service.store.database import Database
from service.store.feedback import feedback, texts
from service.store.reviews import reviews
from service.store.writer import Row


@dataclass(slots=True)
class Exported:
    """What came out: rows by kind, and what was left out by reason."""

    rows: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def report(self) -> str:
        """One line each."""
        lines = [f"{count} {kind} rows" for kind, count in sorted(self.rows.items())] or ["no rows"]
        return "\n".join([*lines, *(f"left out: {n} {why}" for why, n in sorted(self.left_out.items()))])


async def feedback_rows(
    database: Database, exported: Exported, since: float = 0.0, policy: str | None = None
) -> AsyncIterator[Row]:
    """Preferences, ratings and corrections, as `keel-train feedback` reads them."""
    async for row in _said(database, exported, since, policy):
        exported.rows[row["kind"]] += 1
        yield row
    for source in (_compared, _reranked):
        async for row in source(database, exported, since, policy):
            exported.rows[row["kind"]] += 1
            yield row


async def review_rows(
    database: Database, exported: Exported, since: float = 0.0, policy: str | None = None
) -> AsyncIterator[Row]:
    """Decided reviews as labelled texts: the piece in which a classifier found something, and per label 0
    where that was overturned, else 1; of a reply also what it answered."""
    query = select(reviews).where(reviews.c.status != "open", reviews.c.decided_at >= since)
    if policy is not None:
        query = query.where(reviews.c.policy == policy)
    async with database.read() as connection:
        for found in (await connection.execute(query.order_by(reviews.c.decided_at))).mappings():
            pieces = _pieces(found["findings"], found["status"] == "overturned")
            if found["text"] is None:
                exported.left_out["reviews whose text was not kept"] += 1
            elif not pieces:
                exported.left_out["reviews of what no classifier had found"] += 1
            else:
                for (start, end), labels in pieces.items():
                    if not found["text"][start:end].strip():  # beyond what is kept of a long text
                        exported.left_out["findings whose text was not kept"] += 1
                        continue
                    exported.rows[found["status"]] += 1
                    yield {
                        "text": found["text"][start:end],
                        "labels": labels,
                        **_asked(found["prompt"]),
                        "source": "review",
                        "stage": found["stage"],
                        "decision": found["status"],
                        "id": found["id"],
                        "policy": found["policy"],
                        "created": _time(found["decided_at"]),
                    }


def _pieces(findings: Sequence[Row], overturned: bool) -> dict[tuple[int, int], dict[str, float]]:
    """Where classifiers found something, and what the decision says of the labels there."""
    places = {(finding["start"], finding["end"]) for finding in findings}
    found = {
        place: labels_of([one for one in findings if (one["start"], one["end"]) == place], overturned)
        for place in sorted(places)
    }
    return {place: labels for place, labels in found.items() if labels}


def _asked(prompt: Sequence[Mapping[str, str]] | None) -> dict[str, str]:
    """What the last user turn of a kept conversation said."""
    turns = [turn["content"] for turn in prompt or () if turn["role"] == "user"]
    return {"prompt": turns[-1]} if turns else {}


async def agreement(database: Database) -> dict[str, Any]:
    """Counts, and how far raters agree on pairs and on thumbs. The database adds up."""
    voted, thumbed = judgements.c.choice != "skip", feedback.c.kind == "thumb"
    count = select(func.count(), func.count(judgements.c.rater.distinct())).select_from(judgements)
    async with database.read() as connection:
        total, raters = (await connection.execute(count)).one()
        skips = select(func.count()).select_from(judgements).where(~voted)
        skipped = (await connection.execute(skips)).scalar_one()
        pairs_judged = await _agreed(connection, judgements.c.pair_id, judgements.c.choice, voted)
        thumb = cast(feedback.c.value, Text)
        reply = feedback.c.completion_id + "\t" + feedback.c.objective
        replies_judged = await _agreed(connection, reply, thumb, thumbed)
    return {
        "judgements": total,
        "skipped": skipped,
        "raters": raters,
        "pairs": pairs_judged,
        "thumbs": replies_judged,
    }


async def _agreed(
    connection: AsyncConnection,
    unit: ColumnElement[str],
    value: ColumnElement[str],
    which: ColumnElement[bool],
) -> dict[str, Any]:
    """Alpha over the units that several raters judged, how many those are, and how many were judged."""
    judged = (await connection.execute(select(func.count(unit.distinct())).where(which))).scalar_one()
    several = select(unit).where(which).group_by(unit).having(func.count() > 1)
    counts = select(unit, value, func.count()).where(which, unit.in_(several)).group_by(unit, value)
    rows = (await connection.execute(counts)).all()

    def told() -> tuple[float | None, int]:
        by_unit: dict[str, list[str]] = {}
        for name, said, times in rows:
            by_unit.setdefault(name, []).extend([said] * times)
        return alpha(by_unit.values())

    agreed, number = await asyncio.to_thread(told)
    return {"alpha": agreed, "several": number, "judged": judged}


async def _said(
    database: Database, exported: Exported, since: float, policy: str | None
) -> AsyncIterator[Row]:
    """What was said of single replies, and preferences between completions."""
    query = (
        select(feedback, texts.c.prompt, texts.c.replies, completions.c.checkpoint)
        .select_from(
            feedback.outerjoin(texts, texts.c.completion_id == feedback.c.completion_id).outerjoin(
                completions, completions.c.completion_id == feedback.c.completion_id
            )
        )
        .where(feedback.c.at >= since, feedback.c.kind.in_(("thumb", "score", "correction", "preference")))
        .order_by(feedback.c.completion_id, feedback.c.rater, feedback.c.objective, feedback.c.kind)
    )
    if policy is not None:
        query = query.where(feedback.c.policy == policy)
    async with database.read() as connection:
        found = [dict(row) for row in (await connection.execute(query)).mappings()]
        others = [row["other"] for row in found if row["kind"] == "preference"]
        known = select(texts.c.completion_id, texts.c.prompt_digest, texts.c.prompt, texts.c.replies)
        rows = (await connection.execute(known.where(texts.c.completion_id.in_(others)))).mappings()
        other = {row["completion_id"]: dict(row) for row in rows}
    ratings: dict[tuple[str, str, str], Row] = {}
    last = _last_word(found)
    for row in found:
        if row["kind"] == "preference" and last[_pair_of(row)] > row["at"]:
            exported.left_out["preferences that the rater has turned round since"] += 1
            continue
        why = _unfit(row["prompt"], row["replies"])
        if why is not None:
            exported.left_out[f"{row['kind']}s {why}"] += 1
            continue
        about = _about(row)
        prompt, reply = _prompt(row["prompt"]), row["replies"][0].strip()
        if row["kind"] in ("thumb", "score"):
            key = (row["completion_id"], row["rater"], row["objective"])
            rating = ratings.setdefault(key, {"kind": "rating", "prompt": prompt, "reply": reply, **about})
            rating[row["kind"]] = row["value"]
        elif row["kind"] == "correction" and row["value"].strip() != reply:
            kept = {"reply": reply, "correction": row["value"].strip()}
            yield {"kind": "correction", "prompt": prompt, **kept, **about}
        elif row["kind"] == "preference":
            preference = _preference(row, other.get(row["other"]), prompt, reply, about)
            if isinstance(preference, str):
                exported.left_out[preference] += 1
            else:
                yield preference
    for rating in ratings.values():
        yield rating


def _pair_of(row: Row) -> tuple[str, str, frozenset[str]]:
    return row["rater"], row["objective"], frozenset((row["completion_id"], row["other"]))


def _last_word(said: Sequence[Row]) -> dict[tuple[str, str, frozenset[str]], float]:
    """When a rater last said which of two replies is better."""
    last: dict[tuple[str, str, frozenset[str]], float] = {}
    for row in said:
        if row["kind"] == "preference":
            last[_pair_of(row)] = max(row["at"], last.get(_pair_of(row), 0.0))
    return last


def _preference(row: Row, other: Row | None, prompt: str | list[Any], reply: str, about: Row) -> Row | str:
    """A row, or why there is none."""
    if other is None or _unfit(other["prompt"], other["replies"]) is not None:
        return "preferences whose other reply was not kept"
    if other["prompt"] != row["prompt"]:
        return "preferences between replies to different prompts"
    rejected = other["replies"][0].strip()
    if rejected == reply:
        return "preferences between equal replies"
    said = {"chosen": reply, "rejected": rejected, "preference_strength": float(row["value"])}
    return {"kind": "preference", "prompt": prompt, **said, **about}


async def _compared(
    database: Database, exported: Exported, since: float, policy: str | None
) -> AsyncIterator[Row]:
    """What raters preferred of the pairs that they were shown."""
    query = (
        select(judgements, pairs)
        .join(pairs, pairs.c.id == judgements.c.pair_id)
        .where(judgements.c.at >= since)
        .order_by(judgements.c.pair_id, judgements.c.rater)
        .set_label_style(LABEL_STYLE_TABLENAME_PLUS_COL)
    )
    async with database.read() as connection:
        found = [dict(row) for row in (await connection.execute(query)).mappings()]
    for row in found:
        choice = row["judgements_choice"]
        if choice in ("tie", "skip"):
            exported.left_out[{"tie": "ties", "skip": "skipped pairs"}[choice]] += 1
            continue
        better, worse = ("first", "second") if choice == "first" else ("second", "first")
        about = {name: row[f"pairs_{side}_about"] for name, side in (("chosen", better), ("rejected", worse))}
        if policy is not None and policy not in (one.get("policy") for one in about.values()):
            continue
        why = _unfit(row["pairs_prompt"], [row["pairs_first"], row["pairs_second"]], single=False)
        if why is not None:
            exported.left_out[f"comparisons {why}"] += 1
            continue
        yield {
            "kind": "preference",
            "prompt": _prompt(row["pairs_prompt"]),
            "chosen": row[f"pairs_{better}"].strip(),
            "rejected": row[f"pairs_{worse}"].strip(),
            "preference_strength": float(row["judgements_strength"]),
            "objective": row["pairs_objective"],
            "rater": row["judgements_rater"],
            "origin": "comparison",
            "id": row["judgements_pair_id"],
            **{name: about["chosen"][name] for name in ("checkpoint", "policy") if name in about["chosen"]},
            "created": _time(row["judgements_at"]),
        }


async def _reranked(
    database: Database, exported: Exported, since: float, policy: str | None
) -> AsyncIterator[Row]:
    """What reward models preferred of the candidates that they chose from."""
    query = select(pairs).where(pairs.c.source == RERANKED, pairs.c.at >= since).order_by(pairs.c.at)
    async with database.read() as connection:
        found = [dict(row) for row in (await connection.execute(query)).mappings()]
    for row in found:
        about = row["first_about"]
        if policy is not None and about["policy"] != policy:
            continue
        why = _unfit(row["prompt"], [row["first"], row["second"]], single=False)
        if why is not None:
            exported.left_out[f"candidates {why}"] += 1
            continue
        yield {
            "kind": "preference",
            "prompt": _prompt(row["prompt"]),
            "chosen": row["first"].strip(),
            "rejected": row["second"].strip(),
            "preference_strength": row["gap"],
            "objective": row["objective"],
            "rater": f"reward: {about['scorer']}",
            "origin": "rerank",
            "id": row["id"],
            "checkpoint": about["checkpoint"],
            "policy": about["policy"],
            "created": _time(row["at"]),
        }


def _unfit(prompt: Any, replies: Any, single: bool = True) -> str | None:
    """Why this can't be trained on; None where it can."""
    if not prompt or not replies:
        return "of which no text was kept"
    if single and len(replies) != 1:
        return "of requests with several choices"
    if any(not reply.strip() for reply in replies):
        return "of empty replies"
    if not single and len({reply.strip() for reply in replies}) < len(replies):
        return "of equal replies"
    turns = [turn["role"] for turn in prompt]
    talk = turns[1:] if turns[0] == "system" else turns
    expected = ["user", "assistant"] * len(talk)
    if len(talk) % 2 == 0 or talk != expected[: len(talk)] or any(not t["content"].strip() for t in prompt):
        return "of conversations that don't go in turns"
    return None


def _prompt(turns: Sequence[Mapping[str, str]]) -> str | list[Mapping[str, str]]:
    return turns[0]["content"] if len(turns) == 1 else list(turns)


def _about(row: Row) -> Row:
    about = {
        "objective": row["objective"],
        "rater": row["rater"],
        "origin": "feedback",
        "id": row["completion_id"],
        "checkpoint": row["checkpoint"],
        "policy": row["policy"],
        "created": _time(row["at"]),
    }
    return {name: value for name, value in about.items() if value is not None}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
