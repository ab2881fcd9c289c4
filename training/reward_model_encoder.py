"""A BERT encoder that scores: means of its hidden states, then a linear output per objective.

Of every second layer, from the last one down to the word embeddings, it takes the mean over all tokens and
the mean over the reply's own. Sentence encoders such as MiniLM put what a text is *about* into the mean of
their last layer (Reimers and Gurevych 2019, arXiv:1908.10084); how it is said, which preferences are about
too, is easier to read off further down.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class EncoderForReward(BertPreTrainedModel):
    """`[B, T]` ids, mask and segments (1 on the reply) to logits `[B, K]`."""

    # The output is new where training starts from a plain encoder, whose own pooler is not used.
    _keys_to_ignore_on_load_missing = {r"^classifier\."}  # noqa: RUF012  as the base class declares it
    _keys_to_ignore_on_load_unexpected = {r"pooler"}  # noqa: RUF012

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.depths = range(config.num_hidden_layers, -1, -2)
        self.bert = BertModel(config, add_pooling_layer=False)  # type: ignore[no-untyped-call]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(2 * len(self.depths) * config.hidden_size, int(config.num_labels or 1))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, **_: Any
    ) -> SequenceClassifierOutput:
        """Means are over real tokens, those where the mask is 1."""
        states = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            output_hidden_states=True,
        ).hidden_states
        parts = (attention_mask, attention_mask * token_type_ids)
        means = [_mean(states[depth], part_BT) for depth in self.depths for part_BT in parts]
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(torch.cat(means, dim=-1))))


def _mean(hidden_BTD: Tensor, part_BT: Tensor) -> Tensor:
    part_BT1 = part_BT.unsqueeze(-1)
    mean_BD: Tensor = (hidden_BTD * part_BT1).sum(dim=1) / part_BT1.sum(dim=1)
    return mean_BD
