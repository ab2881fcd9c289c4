"""Rollouts: what was sampled, with the log-probabilities that the model itself gives it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.training.tiny import tiny_model, tiny_prompts, tiny_tokenizer
from training.errors import TrainingError
from training.rl import decoding
from training.rl.causal import CausalParts
from training.rl.decoding import LlamaDecoder
from training.rl.rollout import Rollouts, generate, prompt_tokens, stop_ids
from training.rl.sampling import SampleConfig

SAMPLE = SampleConfig(max_new_tokens=12)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights, ten times the usual, so that its distribution is not flat; every tenth token ends."""
    model = tiny_model(tokenizer)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(9, len(tokenizer), 10)]
    return model


@torch.no_grad()
def own_logprobs(model: nn.Module, rollouts: Rollouts, row: int, temperature: float) -> Tensor:
    """log π_T of a reply's tokens by the model's own forward over the whole text, unpadded."""
    prompt, reply = list(rollouts.prompt_ids[row]), rollouts.reply_ids(row)
    logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(reply)[:, None]).squeeze(1)


def differently_sized(rollouts: Rollouts) -> bool:
    return len(set(rollouts.lengths_B.tolist())) > 2


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("fast", [True, False])
def test_logprobs_are_those_of_the_models_own_forward(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    temperature: float,
    fast: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LlamaDecoder, "supports", staticmethod(lambda parts: fast))
    config = SAMPLE.model_copy(update={"temperature": temperature})
    rollouts = generate(model, tokenizer, tiny_prompts() * 4, config, 3)
    assert differently_sized(rollouts)
    for row in range(len(rollouts)):
        own = own_logprobs(model, rollouts, row, temperature)
        torch.testing.assert_close(rollouts.logprobs_BT[row, : len(own)], own, atol=2e-5, rtol=1e-4)
        assert rollouts.logprobs_BT[row, len(own) :].eq(0).all()


def test_fast_decoder_is_chosen_for_llama_and_draws_what_the_general_one_draws(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(decoding.decoder_for(CausalParts(model)), LlamaDecoder)
    fast = generate(model, tokenizer, tiny_prompts() * 4, SAMPLE, 5)
    monkeypatch.setattr(LlamaDecoder, "supports", staticmethod(lambda parts: False))
    general = generate(model, tokenizer, tiny_prompts() * 4, SAMPLE, 5)
    assert torch.equal(fast.reply_ids_BT, general.reply_ids_BT)
    assert fast.texts == general.texts


def test_a_model_of_another_family_takes_the_general_decoder(tokenizer: PreTrainedTokenizerFast) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(shape)
    rollouts = generate(model, tokenizer, tiny_prompts(), SAMPLE, 1)
    model.train(False)
    for row in range(len(rollouts)):
        own = own_logprobs(model, rollouts, row, 1.0)
        torch.testing.assert_close(rollouts.logprobs_BT[row, : len(own)], own, atol=2e-5, rtol=1e-4)


def test_an_adapter_takes_part_and_switches_off(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = generate(model, tokenizer, tiny_prompts(), SAMPLE, 1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    assert isinstance(decoding.decoder_for(CausalParts(adapted)), LlamaDecoder)
    rollouts = generate(adapted, tokenizer, tiny_prompts(), SAMPLE, 1)
    assert not torch.equal(rollouts.logprobs_BT[:, :1], plain.logprobs_BT[:, :1])
    own = own_logprobs(adapted, rollouts, 2, 1.0)
    torch.testing.assert_close(rollouts.logprobs_BT[2, : len(own)], own, atol=2e-5, rtol=1e-4)
    with adapted.disable_adapter():
        assert generate(adapted, tokenizer, tiny_prompts(), SAMPLE, 1).texts == plain.texts


def test_a_row_is_the_same_alone_and_in_any_batch(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = tiny_prompts() * 3
    together = generate(model, tokenizer, prompts, SAMPLE, 7)
    by_five = generate(model, tokenizer, prompts, SAMPLE.model_copy(update={"rows": 5}), 7)
    one_by_one = generate(model, tokenizer, prompts, SAMPLE.model_copy(update={"rows": 1}), 7)
    assert together.texts == by_five.texts == one_by_one.texts
    torch.testing.assert_close(together.logprobs_BT, one_by_one.logprobs_BT, atol=2e-5, rtol=1e-4)


def test_replies_end_with_their_end_of_text_or_are_cut(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rollouts = generate(model, tokenizer, tiny_prompts() * 8, SAMPLE, 3)
    assert 0 < int(rollouts.ended_B.sum()) < len(rollouts)
    stops = stop_ids(model, tokenizer)
    for row, ended in enumerate(rollouts.ended_B.tolist()):
        reply = rollouts.reply_ids(row)
        assert not stops & set(reply[:-1])
        assert ended == (reply[-1] in stops)
        assert ended or len(reply) == SAMPLE.max_new_tokens
    assert rollouts.tokens == int(rollouts.mask_BT.sum())


def test_a_seed_repeats_and_another_differs(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [generate(model, tokenizer, tiny_prompts(), SAMPLE, seed).texts for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_readout_sees_the_state_that_predicted_each_token(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    direction_D = torch.randn(32, generator=torch.Generator().manual_seed(0))
    rollouts = generate(model, tokenizer, tiny_prompts(), SAMPLE, 3, readout=lambda h_BD: h_BD @ direction_D)
    assert rollouts.readout_BT is not None
    prompt, reply = list(rollouts.prompt_ids[5]), rollouts.reply_ids(5)
    with torch.no_grad():
        hidden = model.model(torch.tensor([prompt + reply])).last_hidden_state[0]
    expected = hidden[len(prompt) - 1 : -1] @ direction_D
    torch.testing.assert_close(rollouts.readout_BT[5, : len(reply)], expected, atol=1e-4, rtol=1e-4)


def test_dropout_is_off_and_the_mode_is_restored(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model(tokenizer)
    model.config.attention_dropout = 0.5
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.5
    model.train()
    rollouts = generate(model, tokenizer, tiny_prompts(), SAMPLE, 3)
    assert model.training
    model.eval()
    own = own_logprobs(model, rollouts, 0, 1.0)
    torch.testing.assert_close(rollouts.logprobs_BT[0, : len(own)], own, atol=2e-5, rtol=1e-4)


def test_prompt_tokens_are_the_chat_templates(tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = tiny_prompts()
    for prompt, ids in zip(prompts, prompt_tokens(tokenizer, prompts), strict=True):
        messages = [{"role": m.role, "content": m.content} for m in prompt]
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        assert list(ids) == rendered["input_ids"]


def test_a_prompt_without_room_is_refused(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(TrainingError, match=r"prompt 0 has .* more than the model's 128 positions"):
        generate(model, tokenizer, tiny_prompts(), SAMPLE.model_copy(update={"max_new_tokens": 128}), 0)
