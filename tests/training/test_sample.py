"""Reading what a checkpoint replies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.chat_model import ModelConfig, SamplingConfig, new_model, write_model
from training.data.tokenizer import train_tokenizer
from training.errors import DataError
from training.sample import distinct, main, read_prompts


def test_distinct_counts_different_n_grams() -> None:
    assert distinct(["a b a b", "a"], 1) == pytest.approx(2 / 5)
    assert distinct(["a b a b", "a"], 2) == pytest.approx(2 / 3)
    assert distinct(["", "a"], 2) == 0


def test_prompts_end_with_the_user(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"turns": ["a", "b", "c"]}\n{"turns": ["a", "b"]}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl:2: .*user's"):
        read_prompts(path)


def test_the_shipped_prompts_are_fifty() -> None:
    prompts = read_prompts(Path("training/configs/demo-prompts.jsonl"))
    assert len(prompts) == 50
    assert all(messages[-1]["role"] == "user" for messages in prompts)


def test_the_same_seed_gives_the_same_replies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_tokenizer(["hello there"], 280, 64)
    shape = ModelConfig(
        vocab_size=280, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    write_model(tmp_path / "tiny", new_model(shape, tokenizer, seed=0), tokenizer, SamplingConfig())
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"turns": ["hello"]}\n{"turns": ["a", "b", "c"]}\n')
    outputs = []
    for seed in ("1", "1", "2"):
        arguments = ["--checkpoint", str(tmp_path / "tiny"), "--prompts", str(prompts), "--max-tokens", "8"]
        assert main([*arguments, "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]
    assert json.loads(outputs[0].splitlines()[-1])["replies"] == 2
