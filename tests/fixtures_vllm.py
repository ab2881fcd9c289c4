"""A real vLLM server for tests, started once per test run, on a chat model small enough to load in seconds.

Wire it in a conftest with `pytest_plugins = ["tests.fixtures_vllm"]`. Tests that use `vllm_server` carry the
marker `vllm`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from service.engine.vllm_command import VllmConfig
from service.engine.vllm_process import ManagedVllm

SERVED_NAME = "tiny"
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
HIDDEN, LAYERS, HEADS, INTERMEDIATE, CONTEXT = 64, 2, 2, 128, 2048


def write_tiny_llama(folder: Path, seed: int = 0) -> Path:
    """A Llama of random weights over single bytes, with a chat template; a few hundred kilobytes."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": SPECIAL[0],
                "eos_token": SPECIAL[1],
                "chat_template": CHAT_TEMPLATE,
                "model_max_length": CONTEXT,
            }
        )
    )
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": HIDDEN,
                "intermediate_size": INTERMEDIATE,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": HEADS,
                "vocab_size": len(vocabulary),
                "max_position_embeddings": CONTEXT,
                "tie_word_embeddings": True,
                "torch_dtype": "float32",
                "pad_token_id": 0,
                "eos_token_id": 1,
            }
        )
    )
    save_file(_weights(len(vocabulary), seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _weights(vocabulary: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": draw(vocabulary, HIDDEN),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{layer}self_attn.{name}.weight"] = draw(HIDDEN, HIDDEN)
        for name in ("gate_proj", "up_proj"):
            weights[f"{layer}mlp.{name}.weight"] = draw(INTERMEDIATE, HIDDEN)
        weights[f"{layer}mlp.down_proj.weight"] = draw(HIDDEN, INTERMEDIATE)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}{name}.weight"] = np.ones(HIDDEN, np.float32)
    return weights


@dataclass(frozen=True, slots=True)
class VllmServer:
    """Where the server is. Requests to `/v1/...` need the key; `model` is what they call the model."""

    base_url: str
    api_key: str
    model: str


@pytest.fixture(scope="session")
def vllm_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chat model's folder: the project's own where it is checked out, else one of random weights."""
    own = Path(__file__).parent.parent / "checkpoints" / "demo-chat"
    if (own / "config.json").is_file():
        return own
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@contextmanager
def running_vllm(
    checkpoint: Path, arguments: tuple[str, ...] = (), *, every_route: bool = False
) -> Iterator[VllmServer]:
    """A vLLM on a thread of its own, since every test has its own event loop.

    every_route: with those that swap adapters and weights.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="vllm-fixture", daemon=True)
    thread.start()
    updates = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if every_route else {}
    config = VllmConfig(
        checkpoint, SERVED_NAME, arguments=arguments, reloadable=every_route, environment=updates
    )
    child = ManagedVllm(config)

    async def start() -> None:
        await child.start()
        await child.wait_ready(600)

    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result()
        yield VllmServer(child.base_url, child.api_key, SERVED_NAME)
    finally:
        asyncio.run_coroutine_threadsafe(child.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="session")
def vllm_server(vllm_checkpoint: Path) -> Iterator[VllmServer]:
    """One vLLM for all tests of the run."""
    with running_vllm(vllm_checkpoint, TOOLS, every_route=True) as server:
        yield server
