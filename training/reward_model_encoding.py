"""A prompt with a reply as a reward model reads it: token ids, and padding that changes nothing.

A causal backbone reads the conversation that the chat template renders, which is what vLLM renders for
it; its score is read at the last token. An encoder reads `[CLS] prompt [SEP] reply [SEP]`. Where a text
is too long its beginning goes: the last thing said, and the reply, matter most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.data.conversation import Message
from training.data.preferences import Prompt
from training.errors import TrainingError

Kind = Literal["causal", "encoder"]
SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """`types` are the segments of an encoder's input (0 prompt, 1 reply), zeros for a causal backbone."""

    ids: tuple[int, ...]
    types: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


def encode(
    tokenizer: PreTrainedTokenizerFast, kind: Kind, prompt: Prompt, reply: str, max_length: int
) -> Encoded:
    """One prompt and reply, at most `max_length` tokens."""
    if kind == "causal":
        return _conversation(tokenizer, prompt, reply, max_length)
    return _segments(tokenizer, prompt, reply, max_length)


def _conversation(tokenizer: PreTrainedTokenizerFast, prompt: Prompt, reply: str, max_length: int) -> Encoded:
    messages = [{"role": m.role, "content": m.content} for m in (*prompt, Message("assistant", reply))]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][-max_length:]
    if ids[-1] == tokenizer.pad_token_id:
        raise TrainingError(
            "the rendered conversation ends with the pad token, so its last real token cannot be told from "
            "padding; give the tokenizer a pad_token of its own"
        )
    return Encoded(tuple(ids), (0,) * len(ids))


def _segments(tokenizer: PreTrainedTokenizerFast, prompt: Prompt, reply: str, max_length: int) -> Encoded:
    """A long reply keeps its beginning (its end may be cut by the sampler) and at most 3/4 of the room."""
    told = "\n".join(f"{SPEAKERS[m.role]}: {m.content}" for m in prompt)
    context: list[int] = tokenizer(told, add_special_tokens=False, verbose=False)["input_ids"]
    answer: list[int] = tokenizer(reply, add_special_tokens=False, verbose=False)["input_ids"]
    room = max_length - 3
    answer = answer[: max(room * 3 // 4, room - len(context))]
    context = context[max(0, len(context) + len(answer) - room) :]
    cls, sep = int(tokenizer.cls_token_id), int(tokenizer.sep_token_id)
    return Encoded((cls, *context, sep, *answer, sep), (0,) * (len(context) + 2) + (1,) * (len(answer) + 1))


def pad(encoded: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and segment types `[B, T]`, padded on the right to the longest."""
    longest = max(map(len, encoded))
    ids_BT = torch.full((len(encoded), longest), pad_id)
    mask_BT, types_BT = torch.zeros_like(ids_BT), torch.zeros_like(ids_BT)
    for row, item in enumerate(encoded):
        ids_BT[row, : len(item)] = torch.tensor(item.ids)
        types_BT[row, : len(item)] = torch.tensor(item.types)
        mask_BT[row, : len(item)] = 1
    return ids_BT, mask_BT, types_BT


def padding_to_right(ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same texts with their padding on the right, wherever it was: positions then count real tokens."""
    order_BT = torch.argsort(1 - mask_BT, dim=1, stable=True)
    moved = [tensor.gather(1, order_BT) for tensor in (ids_BT, mask_BT, types_BT)]
    return moved[0], moved[1], moved[2]
