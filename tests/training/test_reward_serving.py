"""vLLM scores a causal reward model as it was trained to score."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.tiny_reward import PROMPTS, REPLIES, reward_model

SCRIPT = """
import json, sys
from vllm import LLM, PoolingParams

model, texts = sys.argv[1], json.loads(sys.argv[2])
engine = LLM(
    model, runner="pooling", convert="classify", dtype="float32", enforce_eager=True,
    distributed_executor_backend="uni", kv_cache_memory_bytes=1 << 26, max_model_len=96,
)
raw = engine.classify(texts, pooling_params=PoolingParams(use_activation=False))
print("SCORES", json.dumps([output.outputs.probs for output in raw]))
"""


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute where the machine is free
def test_vllm_reads_the_raw_scores_that_training_reads(tmp_path: Path) -> None:
    """`--runner pooling --convert classify`, without an activation: each objective's raw score."""
    model = reward_model("causal", ("helpful", "harmless"), width=64)  # heads of 32, vLLM's least
    model.save(tmp_path / "reward")
    texts = []
    for prompt, reply in zip(PROMPTS, REPLIES, strict=True):
        messages = [{"role": m.role, "content": m.content} for m in prompt]
        messages.append({"role": "assistant", "content": reply})
        texts.append(model.tokenizer.apply_chat_template(messages, tokenize=False))
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "reward"), json.dumps(texts)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    (line,) = [x for x in finished.stdout.splitlines() if x.startswith("SCORES ")]
    served = torch.tensor(json.loads(line.removeprefix("SCORES ")))
    assert torch.allclose(served, model.raw(PROMPTS, REPLIES), atol=1e-4)
