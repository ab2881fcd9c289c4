"""One encoder, several heads: a single forward pass answers for sequence labels and for entity tags.

The trunk is a BERT encoder (here MiniLM, Wang et al. 2020). Its token types, unused for single texts,
carry what an uncased vocabulary drops: 0 no capital, 1 a capital first, 2 all capitals. Sequence labels
are independent sigmoids over the joined mean and maximum of the hidden states (the maximum lets one
sentence of a long document count); tags are a softmax per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from training.errors import TrainingError

CASE_TYPES = 3


def case_type(piece: str) -> int:
    """0 for a token without a leading capital, 1 with one, 2 for capitals only (two or more)."""
    if not piece[:1].isupper():
        return 0
    return 2 if len(piece) > 1 and piece.isupper() else 1


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text as the model reads it: ids, case types and character offsets, one of each per token."""

    ids: list[int]
    types: list[int]
    offsets: list[tuple[int, int]]


def load_tokenizer(folder: Path, max_tokens: int) -> Tokenizer:
    """The folder's tokenizer, truncating at `max_tokens` and never padding."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
    """Texts to tokens with their case types, read off the original text by the offsets."""
    return [
        Encoded(e.ids, [case_type(text[start:end]) for start, end in e.offsets], e.offsets)
        for text, e in zip(texts, tokenizer.encode_batch(list(texts)), strict=True)
    ]


class GuardModel(nn.Module):
    """The trunk with its heads. Shapes: B texts, T tokens, D hidden size, L labels, K tags."""

    def __init__(self, config: BertConfig, labels: int, tags: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.bert = BertModel(config, add_pooling_layer=False)  # type: ignore[no-untyped-call]
        self.dense = nn.Linear(2 * size, size)
        self.sequence = nn.Linear(size, labels)
        self.token = nn.Linear(size, tags)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids_BT: Tensor, types_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B, L]` of the labels and `[B, T, K]` of the tags; the mask is 1 on real tokens."""
        hidden_BTD = self.bert(
            input_ids=ids_BT, token_type_ids=types_BT, attention_mask=mask_BT
        ).last_hidden_state
        real_BT1 = mask_BT.unsqueeze(-1).bool()
        mean_BD = hidden_BTD.masked_fill(~real_BT1, 0.0).sum(1) / real_BT1.sum(1)
        top_BD = hidden_BTD.masked_fill(~real_BT1, float("-inf")).amax(1)
        pooled_BD = torch.tanh(self.dense(self.dropout(torch.cat((mean_BD, top_BD), dim=-1))))
        return self.sequence(self.dropout(pooled_BD)), self.token(self.dropout(hidden_BTD))


def from_encoder(folder: Path, labels: int, tags: int) -> GuardModel:
    """Heads, newly initialised, on a pretrained BERT encoder in `folder` (config.json, model.safetensors).

    The encoder's one used token type becomes the start of all case types. Word embeddings are frozen:
    words that the training data lacks keep their place among those that it has.
    """
    config = BertConfig.from_pretrained(folder)
    config.type_vocab_size = CASE_TYPES
    model = GuardModel(config, labels, tags)
    weights = load_file(folder / "model.safetensors")
    table = "embeddings.token_type_embeddings.weight"
    weights[table] = weights[table][:1].repeat(CASE_TYPES, 1)
    missing, _ = model.bert.load_state_dict(weights, strict=False)
    if missing:
        raise TrainingError(f"{folder}: not a BERT encoder of this shape, it lacks {missing[:3]}")
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    return model


def from_checkpoint(folder: Path, labels: int, tags: int) -> GuardModel:
    """A trained model from a run's `final` folder."""
    model = GuardModel(BertConfig.from_pretrained(folder), labels, tags)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
