"""Conversations to token ids through the tokenizer's own chat template, with a mask of what is learnt.

The ids are those of `apply_chat_template` for the same conversation, which is what vLLM renders when it
serves: the template's text is tokenized once, whole. The mask is found by length, never by token id: an
assistant message begins where the text rendered up to it, with the generation prompt, ends.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerFast

from training.data.conversation import Conversation
from training.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Example:
    """`ids` and `supervised` have equal length; `supervised[t]` says that token t is to be predicted."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    difficulty: float | None = None

    def __len__(self) -> int:
        return len(self.ids)


def render(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> Example:
    """One conversation as one example; raises TrainingError where the template isn't prefix-stable."""
    messages = conversation.as_dicts()
    text = _apply(tokenizer, messages, generation_prompt=False)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoding["input_ids"]
    if conversation.supervise == "all":
        return Example(tuple(ids), (True,) * len(ids), conversation.difficulty)
    starts = [start for start, _ in encoding["offset_mapping"]]
    supervised = [False] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _apply(tokenizer, messages[:index], generation_prompt=True)
        upto = _apply(tokenizer, messages[: index + 1], generation_prompt=False)
        if not (upto.startswith(before) and text.startswith(upto)):
            raise TrainingError(
                "the chat template rewrites earlier messages when later ones are added, so an assistant "
                "mask cannot be found by length; use a template that only appends"
            )
        for position in range(bisect_left(starts, len(before)), bisect_left(starts, len(upto))):
            supervised[position] = True
    return Example(tuple(ids), tuple(supervised), conversation.difficulty)


def render_within(
    conversation: Conversation, tokenizer: PreTrainedTokenizerFast, max_tokens: int
) -> Example | None:
    """Like `render`, dropping the last exchanges until it fits; None where not even one exchange does."""
    messages = conversation.messages
    while messages:
        example = render(replace(conversation, messages=messages), tokenizer)
        if len(example) <= max_tokens:
            return example
        messages = messages[:-1]
        while messages and messages[-1].role != "assistant":
            messages = messages[:-1]
    return None


def _apply(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], generation_prompt: bool
) -> str:
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generation_prompt
    )
    assert isinstance(rendered, str)  # noqa: S101  what tokenize=False returns for one conversation
    return rendered
