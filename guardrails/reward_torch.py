"""Reward models inside a guard worker: what `keel-train reward` writes, read and scored as it was trained.

A causal backbone reads the conversation that its chat template renders, and its score is read at the last
token; an encoder reads `[CLS] prompt [SEP] reply [SEP]` and scores means of its hidden states (every second
layer from the last one down to the word embeddings, over all tokens and over the reply's). Where a text is
too long its beginning goes. One text at a time and without padding: a score must not depend on what else is
in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertPreTrainedModel,
)

from guardrails.classifier import scrubbed
from guardrails.reward import About, Payload, Scores, Turn, members_of, read_about
from policies.manifest import CheckpointError
from policies.registry import Registry

SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}


class EncoderForReward(BertPreTrainedModel):
    """Ids and segments `[1, T]` (1 on the reply) to raw scores `[1, K]`."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.depths = range(config.num_hidden_layers, -1, -2)
        self.bert = BertModel(config, add_pooling_layer=False)  # type: ignore[no-untyped-call]
        self.classifier = nn.Linear(2 * len(self.depths) * config.hidden_size, int(config.num_labels or 1))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, ids_BT: Tensor, types_BT: Tensor) -> Tensor:
        """Raw scores `[1, K]`."""
        states = self.bert(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            token_type_ids=types_BT,
            output_hidden_states=True,
        ).hidden_states
        reply_BT1 = types_BT.unsqueeze(-1)
        means = []
        for depth in self.depths:
            means += [states[depth].mean(dim=1), (states[depth] * reply_BT1).sum(1) / reply_BT1.sum(1)]
        scores: Tensor = self.classifier(torch.cat(means, dim=-1))
        return scores


class RewardMember:
    """One model with its tokenizer and normalisation."""

    def __init__(self, model: Any, tokenizer: Any, about: About) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._about = about
        self._mean = torch.tensor(about.mean, dtype=torch.float64)
        variances = [about.covariance[k][k] for k in range(len(about.objectives))]
        self._deviation = torch.tensor(variances, dtype=torch.float64).sqrt()

    @classmethod
    def load(cls, folder: Path) -> RewardMember:
        """Raises CheckpointError for a folder that is no reward model."""
        about = read_about(folder)
        factory: Any = EncoderForReward if about.kind == "encoder" else AutoModelForSequenceClassification
        model = factory.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        if model.config.num_labels != len(about.objectives):
            raise CheckpointError(
                f"{folder}: config.json has {model.config.num_labels} outputs, reward.json names "
                f"{len(about.objectives)} objectives; they must agree"
            )
        return cls(model, AutoTokenizer.from_pretrained(folder, local_files_only=True), about)

    @torch.inference_mode()
    def score(self, conversation: Sequence[Turn], reply: str) -> tuple[float, ...]:
        """Each objective's standardised score, `[K]`."""
        turns = [(role, scrubbed(text)) for role, text in conversation]
        if self._about.kind == "encoder":
            ids, types = self._segments(turns, scrubbed(reply))
            raw = self._model(torch.tensor([ids]), torch.tensor([types]))[0]
        else:
            raw = self._model(input_ids=torch.tensor([self._rendered(turns, scrubbed(reply))])).logits[0]
        return tuple(((raw.double() - self._mean) / self._deviation).tolist())

    def _rendered(self, turns: Sequence[Turn], reply: str) -> list[int]:
        messages = [{"role": role, "content": text} for role, text in (*turns, ("assistant", reply))]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        return self._ids(text)[-self._about.max_length :]

    def _segments(self, turns: Sequence[Turn], reply: str) -> tuple[list[int], list[int]]:
        """A long reply keeps its beginning, and at most 3/4 of the room."""
        context = self._ids("\n".join(f"{SPEAKERS[role]}: {text}" for role, text in turns))
        answer = self._ids(reply)
        room = self._about.max_length - 3
        answer = answer[: max(room * 3 // 4, room - len(context))]
        context = context[max(0, len(context) + len(answer) - room) :]
        cls, sep = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        return [cls, *context, sep, *answer, sep], [0] * (len(context) + 2) + [1] * (len(answer) + 1)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids


class RewardServable:
    """The models of a checkpoint. A payload is a conversation and a reply, a result each member's scores."""

    def __init__(self, members: Sequence[RewardMember]) -> None:
        torch.set_num_threads(1)
        self._members = members

    def predict(self, batch: list[Payload]) -> list[Scores]:
        return [
            tuple(member.score(conversation, reply) for member in self._members)
            for conversation, reply in batch
        ]


def serve_folder(folder: str) -> RewardServable:
    """The factory for a folder."""
    return RewardServable([RewardMember.load(member) for member in members_of(Path(folder))])


def serve_checkpoint(root: str, ref: str) -> RewardServable:
    """The factory for a checkpoint of the registry in folder `root`: every byte is verified, then loaded."""
    registry = Registry(root)
    checkpoint = registry.resolve(ref)
    registry.verify(checkpoint)
    return serve_folder(str(checkpoint.path))
