"""Packing: nothing lost, nothing split, nothing seen across examples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.epochs import epoch_rows, steps_from
from training.data.packing import collate, pack
from training.data.render import Example
from training.errors import TrainingError


def an_example(number: int, length: int) -> Example:
    return Example((number,) * length, tuple(i % 2 == 0 for i in range(length)))


examples = st.lists(st.integers(1, 16), max_size=40).map(
    lambda lengths: [an_example(100 + n, length) for n, length in enumerate(lengths)]
)


@given(examples)
def test_every_example_is_in_exactly_one_row_whole(given_examples: list[Example]) -> None:
    rows = pack(given_examples, 16)
    assert sorted(e.ids for row in rows for e in row) == sorted(e.ids for e in given_examples)
    assert all(0 < sum(map(len, row)) <= 16 for row in rows)


@given(examples)
def test_packing_wastes_less_than_half(given_examples: list[Example]) -> None:
    rows = pack(given_examples, 16)
    assert len(rows) <= 2 * sum(map(len, given_examples)) / 16 + 1


def test_an_example_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack([an_example(1, 5)], 4)


@given(examples.filter(len))
def test_a_token_looks_at_its_own_example_and_the_past_only(given_examples: list[Example]) -> None:
    rows = pack(given_examples, 16)
    batch = collate(rows, 16, pad_id=0)
    for b in range(len(rows)):
        for query in range(16):
            seen = batch.attention_B1TT[b, 0, query].nonzero().flatten()
            assert query in seen
            assert seen.max() == query
            assert (batch.input_ids_BT[b, seen] == batch.input_ids_BT[b, query]).all()
            real = batch.input_ids_BT[b, query] != 0
            assert len(seen) == (batch.position_ids_BT[b, query] + 1 if real else 1)


@given(examples.filter(len))
def test_supervision_is_kept_but_for_first_tokens(given_examples: list[Example]) -> None:
    batch = collate(pack(given_examples, 16), 16, pad_id=0)
    assert batch.supervised_BT.sum() == sum(sum(e.supervised[1:]) for e in given_examples)
    assert not batch.supervised_BT[batch.input_ids_BT == 0].any()
    assert not batch.supervised_BT[batch.position_ids_BT == 0].any()


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    data = [an_example(n, 5) for n in range(50)]
    assert epoch_rows(data, 1, 0, 16) == epoch_rows(data, 1, 0, 16)
    assert epoch_rows(data, 1, 0, 16) != epoch_rows(data, 1, 1, 16)
    assert epoch_rows(data, 1, 0, 16) != epoch_rows(data, 2, 0, 16)


@given(st.integers(0, 30))
def test_steps_can_be_entered_anywhere(start: int) -> None:
    data = [an_example(n, 5) for n in range(20)]
    whole = steps_from(data, 7, 16, 2, 0)
    expected = [next(whole) for _ in range(start + 3)][start:]
    entered = steps_from(data, 7, 16, 2, start)
    assert [next(entered) for _ in range(3)] == expected


def test_fewer_rows_than_a_step_needs_is_an_error() -> None:
    with pytest.raises(TrainingError, match="rows_per_step"):
        next(steps_from([an_example(1, 5)], 0, 16, 2, 0))


def test_padding_fills_the_rest() -> None:
    batch = collate([(an_example(9, 3),)], 5, pad_id=0)
    assert batch.input_ids_BT.tolist() == [[9, 9, 9, 0, 0]]
    assert batch.position_ids_BT.dtype == torch.int64
