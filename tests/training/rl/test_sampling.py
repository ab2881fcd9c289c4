"""The sampler: it draws from the distribution that it is given, and says with which probability."""

from __future__ import annotations

import torch
from torch import Tensor

from training.rl.sampling import SampleConfig, draw, kept

LOGITS_V = torch.tensor([1.0, 0.0, -1.0, 3.0, -40.0, 2.0])


def frequencies(config: SampleConfig, draws: int = 60_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(draws, dtype=torch.float64, generator=generator)
    tokens = draw(LOGITS_V.expand(draws, -1), uniforms, config).tokens_B
    return torch.bincount(tokens, minlength=len(LOGITS_V)) / draws


def test_frequencies_are_the_softmax_at_the_temperature() -> None:
    for temperature in (1.0, 0.5, 2.0):
        expected = (LOGITS_V / temperature).softmax(-1)
        torch.testing.assert_close(
            frequencies(SampleConfig(temperature=temperature)), expected, atol=0.006, rtol=0
        )


def test_logprobs_are_the_policys_at_the_temperature_whatever_was_truncated() -> None:
    for config in (
        SampleConfig(temperature=0.7),
        SampleConfig(temperature=0.7, top_p=0.6),
        SampleConfig(temperature=0.7, top_k=2),
    ):
        drawn = draw(LOGITS_V.expand(50, -1), torch.linspace(0, 0.99, 50, dtype=torch.float64), config)
        expected = (LOGITS_V / 0.7).log_softmax(-1)[drawn.tokens_B]
        torch.testing.assert_close(drawn.logprobs_B, expected)


def test_top_p_keeps_the_smallest_set_that_reaches_its_share() -> None:
    # Probabilities, sorted: token 3 .62, token 5 .23, token 0 .08, …
    weights = LOGITS_V.exp()[None]
    assert kept(weights, SampleConfig(top_p=0.5)).nonzero()[:, 1].tolist() == [3]
    assert kept(weights, SampleConfig(top_p=0.7)).nonzero()[:, 1].tolist() == [3, 5]
    assert kept(weights, SampleConfig(top_k=3)).nonzero()[:, 1].tolist() == [0, 3, 5]
    assert kept(weights, SampleConfig(top_k=3, top_p=0.7)).nonzero()[:, 1].tolist() == [3, 5]
    assert set(frequencies(SampleConfig(top_p=0.7)).nonzero().flatten().tolist()) == {3, 5}


def test_temperature_zero_takes_the_likeliest() -> None:
    drawn = draw(LOGITS_V[None], torch.tensor([0.999], dtype=torch.float64), SampleConfig(temperature=0))
    assert drawn.tokens_B.item() == 3
    torch.testing.assert_close(drawn.logprobs_B, LOGITS_V.log_softmax(-1)[3:4])


def test_the_ends_of_the_unit_interval_never_draw_what_has_no_probability() -> None:
    logits_BV = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, -1)
    below_one = 1 - 2**-53
    drawn = draw(logits_BV, torch.tensor([0.0, below_one], dtype=torch.float64), SampleConfig())
    assert drawn.tokens_B.tolist() == [1, 2]
