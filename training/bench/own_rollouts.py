"""One way of sampling replies, measured: `python -m training.bench.own_rollouts JOB.json WAY`.

WAY is `keel`, `generate` (transformers' own) or `vllm`. A turn samples one reply to each of the prompts.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import torch

from training.chat_model import read_model, read_tokenizer
from training.data.preferences import as_prompt
from training.rl.decoding import left_padded
from training.rl.rollout import generate, prompt_tokens
from training.rl.sampling import SampleConfig
from training.rl.vllm import VllmRollouts, vllm_sampler

# (seed) -> sampled tokens
Way = Callable[[int], int]


def main(job: dict[str, Any], way: str) -> None:
    torch.set_num_threads(1)
    place = Path(job["model"])
    tokenizer, model = read_tokenizer(place), read_model(place)
    model.to(job["device"])
    prompts = [as_prompt(text) for text in job["texts"]][: job["rollouts"]]
    sample = SampleConfig(max_new_tokens=job["max_new_tokens"])

    def by_generate(seed: int) -> int:
        ids = prompt_tokens(tokenizer, prompts)
        ids_BP, pads_B = left_padded(ids, max(map(len, ids)))
        mask_BP = (torch.arange(ids_BP.shape[1]) >= pads_B[:, None]).long()
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
        sampler: Any = model.generate  # type: ignore[misc]  # its annotation of self fits no model
        out = sampler(
            input_ids=ids_BP.to(model.device),
            attention_mask=mask_BP.to(model.device),
            max_new_tokens=sample.max_new_tokens,
            **options,
        )
        replies = out[:, ids_BP.shape[1] :]
        ended = (replies == tokenizer.eos_token_id).long()
        return int((ended.cumsum(1) - ended == 0).sum())

    def in_process(seed: int) -> int:
        return generate(model, tokenizer, prompts, sample, seed).tokens

    context: Any = vllm_sampler(VllmRollouts(), model, tokenizer, sample) if way == "vllm" else nullcontext()
    with context as sampler:
        ways: dict[str, Way] = {
            "keel": in_process,
            "generate": by_generate,
            "vllm": lambda seed: sampler(prompts, seed, 0).tokens,
        }
        ways[way](0)  # what starts late starts now
        print(json.dumps({"ready": True}), flush=True)
        seed = 0
        while sys.stdin.readline():
            seed += 1
            print(json.dumps(_turn(ways[way], seed)), flush=True)


def _turn(way: Way, seed: int) -> dict[str, float]:
    """Wall time, and the CPU time of this process and its children (vLLM's are children)."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    before = _cpu(family)
    wall = time.perf_counter()
    tokens = way(seed)
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": _cpu(family) - before,
        "tokens": tokens,
        "rss_mib": sum(p.memory_info().rss for p in family) / 2**20,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _cpu(family: list[psutil.Process]) -> float:
    return float(sum(sum(p.cpu_times()[:2]) for p in family))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2])
