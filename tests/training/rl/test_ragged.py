"""The forward without padding is the padded one: hidden states and gradients, plain and with a LoRA."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.methods.preference_data import adapted
from tests.training.tiny import tiny_model, tiny_tokenizer
from training.rl import ragged
from training.rl.causal import CausalParts, hidden_at

TOKENIZER = tiny_tokenizer()
LENGTHS = torch.tensor([3, 17, 9, 1, 30])
# Flat positions in [5, 30], rows in another order than they stand in, one of them twice.
POSITIONS = torch.tensor([30 + 4, 30 + 16, 0, 2, 60 + 8, 90, 120 + 29, 120, 120])


def texts() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(3, 300, (5, 30), generator=generator)
    return ids_BT * (torch.arange(30) < LENGTHS[:, None])


def by_padding(model: Any, ids_BT: Tensor) -> Tensor:
    return CausalParts(model).trunk(ids_BT, None).flatten(0, 1)[POSITIONS]


def gradients(model: Any, hidden_ND: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    hidden_ND.square().sum().backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_hidden_states_and_gradients_are_those_of_the_padded_forward(lora: bool) -> None:
    model = adapted(TOKENIZER) if lora else tiny_model(TOKENIZER, layers=3)
    torch.manual_seed(1)
    with torch.no_grad():  # a LoRA starts at zero
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    decoder, ids_BT = CausalParts(model).decoder, texts()
    assert ragged.supports(decoder)
    flat, padded = hidden_at(decoder, ids_BT, LENGTHS, POSITIONS), by_padding(model, ids_BT)
    torch.testing.assert_close(flat, padded, atol=1e-5, rtol=1e-4)
    ours, theirs = gradients(model, flat), gradients(model, by_padding(model, ids_BT))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-3, rtol=1e-3, msg=name)


def test_what_is_padding_changes_nothing() -> None:
    model, ids_BT = tiny_model(TOKENIZER), texts()
    decoder = CausalParts(model).decoder
    other_BT = torch.where(torch.arange(30) < LENGTHS[:, None], ids_BT, 77)
    first = hidden_at(decoder, ids_BT, LENGTHS, POSITIONS)
    assert torch.equal(first, hidden_at(decoder, other_BT, LENGTHS, POSITIONS))


def test_models_with_more_in_their_forward_are_padded() -> None:
    model: Any = tiny_model(TOKENIZER)
    ids_BT = texts()
    expected = by_padding(model, ids_BT)
    dropping = deepcopy(model)
    dropping.config.attention_dropout = 0.1
    saving = deepcopy(model)
    saving.gradient_checkpointing_enable()
    for other in (dropping, saving):
        decoder = CausalParts(other).decoder
        assert not ragged.supports(decoder)
        found = hidden_at(decoder.eval(), ids_BT, LENGTHS, POSITIONS)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
