"""Prompts with their replies as token ids, split where the assistant's words begin.

The ids are those that the chat template renders for the whole conversation, which is what vLLM renders, cut
by length, never by token id. Nothing is truncated: a reply that is cut off would be compared for what it
lost, so rows that are too long are left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from transformers import PreTrainedTokenizerFast

from training.data.preferences import Preference, Prompt, Rating
from training.errors import TrainingError

Source = TypeVar("Source", Preference, Rating)
Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PairRow:
    """A pair as token ids; the replies include the template's end of turn."""

    prompt: Ids
    chosen: Ids
    rejected: Ids
    source: Preference

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, slots=True)
class ReplyRow:
    """A rated reply as token ids."""

    prompt: Ids
    reply: Ids
    source: Rating

    @property
    def longest(self) -> int:
        return len(self.prompt) + len(self.reply)


Row = TypeVar("Row", PairRow, ReplyRow)


@dataclass(frozen=True, slots=True)
class Rendered(Generic[Row]):
    """The rows that fit, and how many did not."""

    rows: tuple[Row, ...]
    too_long: int


def render_pairs(
    preferences: Sequence[Preference], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> Rendered[PairRow]:
    """The pairs of which both replies fit `max_length` tokens with their prompt."""

    def render(pair: Preference) -> PairRow:
        prompt, (chosen, rejected) = render_replies(pair.prompt, (pair.chosen, pair.rejected), tokenizer)
        return PairRow(prompt, chosen, rejected, pair)

    return _fitting(preferences, render, max_length)


def render_ratings(
    ratings: Sequence[Rating], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> Rendered[ReplyRow]:
    """The rated replies that fit `max_length` tokens with their prompt."""

    def render(rating: Rating) -> ReplyRow:
        prompt, (reply,) = render_replies(rating.prompt, (rating.reply,), tokenizer)
        return ReplyRow(prompt, reply, rating)

    return _fitting(ratings, render, max_length)


def render_replies(
    prompt: Prompt, replies: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> tuple[Ids, list[Ids]]:
    """The prompt's ids, ready for the assistant's words, and those words' ids for each reply.

    Raises TrainingError where the template renders the prompt differently once a reply follows.
    """
    messages = [{"role": m.role, "content": m.content} for m in prompt]
    before = _ids(tokenizer, messages, generation_prompt=True)
    after = []
    for reply in replies:
        whole = _ids(tokenizer, [*messages, {"role": "assistant", "content": reply}], generation_prompt=False)
        if whole[: len(before)] != before:
            raise TrainingError(
                "the chat template renders a prompt differently when the reply follows, so the reply can't "
                "be cut off by length; use a template that only appends, and ends its generation prompt "
                "at a token's boundary"
            )
        after.append(whole[len(before) :])
    return before, after


def _ids(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], generation_prompt: bool) -> Ids:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _fitting(sources: Sequence[Source], render: Callable[[Source], Row], max_length: int) -> Rendered[Row]:
    rows = [render(source) for source in sources]
    kept = tuple(row for row in rows if row.longest <= max_length)
    if rows and not kept:
        raise TrainingError(
            f"none of {len(rows)} rows fits max_length {max_length}; the shortest has "
            f"{min(row.longest for row in rows)} tokens"
        )
    return Rendered(kept, len(rows) - len(kept))
