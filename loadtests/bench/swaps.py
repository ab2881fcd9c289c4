"""`python -m loadtests.bench.swaps --out docs/RESULTS-hotload.md`: callers who stream while adapters are swapped.

A gateway with a vLLM of its own serves two adapters over the shipped chat model, in turn. Every reply is
greedy, in float32, and is compared word for word with what the checkpoint in its header answered alone, before
the load: so a reply of two versions, or under the wrong header, shows. First a while without any swap.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from safetensors.numpy import save_file

from loadtests.bench.processes import ROOT, BenchError, free_port, serve

ADMIN_KEY = "bench-admin-key-0123456789"
BASE = "demo-chat"
ALIAS = "chat"
RANK, SEEDS = 8, (1, 2)
TOKENS = 40
POLICIES = {
    "open": "",
    "guarded": "output:\n  - {guard: patterns, patterns: ['(?i)\\bproject zephyr\\b'], action: block}\n",
}
PROMPTS = (
    "Hello! How are you today?",
    "What do you like to do in summer?",
    "I would like to book a table for two.",
    "Tell me something about the sea.",
    "Do you have a pet?",
    "What shall we cook tonight?",
    "My train is late again.",
    "Which book should I read next?",
)


@dataclass(frozen=True, slots=True)
class Reply:
    """One streamed reply; times are seconds of the loop's clock. `error` is empty where all went well."""

    policy: str
    prompt: int
    began: float
    first: float
    ended: float
    checkpoint: str = ""
    text: str = ""
    error: str = ""


@dataclass(slots=True)
class Run:
    """What was seen. `swaps` are beginnings and ends."""

    steady: list[Reply] = field(default_factory=list)
    swapped: list[Reply] = field(default_factory=list)
    swaps: list[tuple[float, float, str]] = field(default_factory=list)


def make_registry(root: Path) -> list[str]:
    """The shipped model and two adapters over it in folder `root`; the adapters' names with digests."""
    shutil.copytree(ROOT / "checkpoints" / BASE, root / BASE)
    base = json.loads((root / BASE / "manifest.json").read_bytes())
    config = json.loads((root / BASE / "config.json").read_bytes())
    parent = f"{BASE}@{base['digest']}"
    refs = []
    for seed in SEEDS:
        folder = root / f"{ALIAS}-{seed}"
        folder.mkdir()
        save_file(_lora(config, seed), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        about = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none",
            "target_modules": ["q_proj", "o_proj"], "base_model_name_or_path": parent,
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(about))
        refs.append(_publish(folder, base, parent))
    (root / "aliases.json").write_text(json.dumps({ALIAS: refs[0]}))
    return refs


def _lora(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden = config["hidden_size"]
    width = config["num_attention_heads"] * config["head_dim"]
    tensors = {}
    for layer, (target, out) in itertools.product(
        range(config["num_hidden_layers"]), (("q_proj", width), ("o_proj", hidden))
    ):
        place = f"base_model.model.model.layers.{layer}.self_attn.{target}"
        a, b = (
            rng.standard_normal((RANK, hidden)) / math.sqrt(hidden),
            rng.standard_normal((out, RANK)) * 0.15,
        )
        tensors[f"{place}.lora_A.weight"] = a.astype(np.float32)
        tensors[f"{place}.lora_B.weight"] = b.astype(np.float32)
    return tensors


def _publish(folder: Path, base: dict[str, Any], parent: str) -> str:
    """A manifest as the registry has them, with the base's as its pattern."""
    files = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        role = "weights" if path.suffix == ".safetensors" else "other"
        digest = hashlib.sha256(content).hexdigest()
        files.append({"path": path.name, "role": role, "bytes": len(content), "sha256": digest})
    about: dict[str, Any] = {
        **{key: value for key, value in base.items() if key != "digest"},
        "name": folder.name, "kind": "adapter", "method": "none", "config": {}, "parent": parent,
        "description": "random, for the swap benchmark", "evaluations": [], "files": files,
    }  # fmt: skip
    canonical = json.dumps(about, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(canonical).hexdigest()
    written = json.dumps({"digest": digest, **about}, indent=1, sort_keys=True) + "\n"
    (folder / "manifest.json").write_text(written)
    return f"{folder.name}@{digest}"


class Load:
    """Callers of one gateway."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session
        self._clock = asyncio.get_running_loop().time

    async def ask(self, policy: str, prompt: int) -> Reply:
        """One streamed, greedy reply."""
        body = {
            "model": policy, "stream": True, "temperature": 0, "max_tokens": TOKENS,
            "messages": [{"role": "user", "content": PROMPTS[prompt]}],
        }  # fmt: skip
        began = first = self._clock()
        text, done, checkpoint = "", False, ""
        try:
            async with self._session.post(f"{self._url}/v1/chat/completions", json=body) as response:
                if response.status != 200:
                    why = f"status {response.status}: {(await response.text())[:200]}"
                    return Reply(policy, prompt, began, first, self._clock(), error=why)
                checkpoint = response.headers["x-keel-checkpoint"]
                async for line in response.content:
                    if line.startswith(b"data: [DONE]"):
                        done = True
                    elif line.startswith(b"data: "):
                        event = json.loads(line[6:])
                        if "error" in event:
                            why = str(event["error"])
                            return Reply(policy, prompt, began, first, self._clock(), checkpoint, text, why)
                        piece = "".join(c["delta"].get("content") or "" for c in event["choices"])
                        first = self._clock() if piece and not text else first
                        text += piece
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Reply(policy, prompt, began, first, self._clock(), checkpoint, text, repr(error))
        why = "" if done else "no [DONE]"
        return Reply(policy, prompt, began, first, self._clock(), checkpoint, text, why)

    async def callers(self, count: int, seconds: float, into: list[Reply]) -> None:
        """So many who ask one after the other."""
        until = self._clock() + seconds
        turns = itertools.cycle(itertools.product(POLICIES, range(len(PROMPTS))))

        async def one() -> None:
            while self._clock() < until:
                into.append(await self.ask(*next(turns)))

        await asyncio.gather(*(one() for _ in range(count)))

    async def swap(self, ref: str) -> tuple[float, float, str]:
        """Promote, as an operator would over the admin API."""
        began = self._clock()
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        where = f"{self._url}/admin/v1/checkpoints/promote"
        body = {"ref": ref, "alias": ALIAS}
        async with self._session.post(where, json=body, headers=headers) as response:
            answer = await response.json()
        return began, self._clock(), "" if response.status == 200 else str(answer)

    async def references(self, refs: Sequence[str]) -> dict[tuple[str, int], str]:
        """What each checkpoint answers to each prompt, asked alone. Leaves the first one promoted."""
        alone: dict[tuple[str, int], str] = {}
        for ref in (*refs[1:], refs[0]):
            error = (await self.swap(ref))[2]
            if error:
                raise BenchError(f"{ref} could not be promoted: {error}")
            for prompt in range(len(PROMPTS)):
                reply = await self.ask("open", prompt)
                if reply.error or reply.checkpoint != ref:
                    raise BenchError(f"{ref} does not answer: {reply}")
                alone[ref, prompt] = reply.text
        same = [p for p in range(len(PROMPTS)) if len({alone[ref, p] for ref in refs}) < len(refs)]
        if same:
            raise BenchError(f"the adapters answer prompts {same} alike: a mixed reply would not show")
        return alone


async def measure(url: str, refs: Sequence[str], args: argparse.Namespace) -> tuple[Run, dict[str, int]]:
    """The steady while, the swaps, and how the replies compare with what was to be answered."""
    run = Run()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        load = Load(url, session)
        alone = await load.references(refs)
        await load.callers(args.callers, min(10.0, args.steady), [])  # warm
        await load.callers(args.callers, args.steady, run.steady)
        calling = asyncio.create_task(load.callers(args.callers, args.seconds, run.swapped))
        turns = itertools.cycle((*refs[1:], refs[0]))
        while not calling.done():
            await asyncio.wait({calling}, timeout=args.every)
            if not calling.done():
                run.swaps.append(await load.swap(next(turns)))
        await calling
    replies = [*run.steady, *run.swapped]
    good = [reply for reply in replies if not reply.error]
    return run, {
        "replies": len(replies),
        "failed": len(replies) - len(good),
        "own": sum(alone[reply.checkpoint, reply.prompt] == reply.text for reply in good),
        "swaps": len(run.swaps),
        "swaps_refused": sum(bool(error) for *_, error in run.swaps),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """By the nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def figures(run: Run, counts: dict[str, int]) -> dict[str, Any]:
    """Everything in milliseconds. A reply is `during` when it was under way at any time of a swap."""
    during = [r for r in run.swapped if any(r.began < end and start < r.ended for start, end, _ in run.swaps)]
    groups = {"steady": run.steady, "during": during, "all": run.swapped}
    table = {
        name: {
            "n": len(group),
            **{
                f"{what}_p{round(share * 100)}": round(quantile([pick(r) * 1e3 for r in group], share), 1)
                for what, pick in (("whole", _whole), ("first", _first))
                for share in (0.5, 0.99)
            },
        }
        for name, group in groups.items()
    }
    took = [(end - start) * 1e3 for start, end, _ in run.swaps]
    swap = {f"p{round(s * 100)}": round(quantile(took, s), 1) for s in (0.5, 0.99)}
    errors = sorted({reply.error for reply in (*run.steady, *run.swapped) if reply.error})[:5]
    return {"counts": counts, "latency_ms": table, "swap_ms": swap, "errors": errors}


def _whole(reply: Reply) -> float:
    return reply.ended - reply.began


def _first(reply: Reply) -> float:
    return reply.first - reply.began


def environment(folder: Path, port: int) -> dict[str, str]:
    """The gateway's settings."""
    policies = folder / "policies"
    policies.mkdir()
    for name, text in POLICIES.items():
        (policies / f"{name}.yaml").write_text(f"name: {name}\nmodel: {{checkpoint: {ALIAS}}}\n{text}")
    return {
        "KEEL_PORT": str(port),
        "KEEL_POLICIES": json.dumps([str(policies)]),
        "KEEL_SHIPPED_POLICIES": "false",
        "KEEL_CHECKPOINTS": str(folder / "checkpoints"),
        "KEEL_STATE_DIR": str(folder / "state"),
        "KEEL_ADMIN_KEY": ADMIN_KEY,
        "KEEL_ENGINE__ADAPTERS": "true",
        "KEEL_ENGINE__MAX_ADAPTER_RANK": str(RANK),
        "KEEL_ENGINE__VLLM_ARGS": json.dumps(["--dtype", "float32"]),
        "KEEL_LOG__ACCESS": "errors",
    }


# ruff: noqa: E501 - a table's rows are lines
PAGE = """# Swapping checkpoints under load

`{command}` on {cores} cores ({date}): {callers} callers stream greedy replies of {tokens} tokens at most from
`demo-chat` with one of two adapters (rank {rank}, seeds {seeds}), half through a policy with a pattern guard. First
{steady:.0f} s without a swap, then {seconds:.0f} s with a promotion every {every:.0f} s over the admin API, the canary of
8 prompts included. Load generator, gateway and vLLM share the cores.

| | |
|---|---|
| replies | {replies} |
| failed | {failed} |
| word for word what the checkpoint in the header answers alone | {own} of {good} |
| swaps, refused | {swaps}, {swaps_refused} |
| a swap, from the request to the answer | p50 {swap_p50} ms, p99 {swap_p99} ms |

| milliseconds | replies | first text p50 | first text p99 | whole p50 | whole p99 |
|---|---|---|---|---|---|
| steady | {s[n]} | {s[first_p50]} | {s[first_p99]} | {s[whole_p50]} | {s[whole_p99]} |
| under way during a swap | {d[n]} | {d[first_p50]} | {d[first_p99]} | {d[whole_p50]} | {d[whole_p99]} |
| all of the time with swaps | {a[n]} | {a[first_p50]} | {a[first_p99]} | {a[whole_p50]} | {a[whole_p99]} |

p99 during a swap against the steady one: **{ratio:.2f}** for whole replies, **{first_ratio:.2f}** for the first text.
"""


def page(seen: dict[str, Any], args: argparse.Namespace) -> str:
    """docs/RESULTS-hotload.md."""
    counts, table = seen["counts"], seen["latency_ms"]
    steady, during = table["steady"], table["during"]
    return PAGE.format(
        command="python -m loadtests.bench.swaps", cores=os.cpu_count(), date=time.strftime("%Y-%m-%d"),
        tokens=TOKENS, rank=RANK, seeds=" and ".join(map(str, SEEDS)),
        good=counts["replies"] - counts["failed"],
        swap_p50=seen["swap_ms"]["p50"], swap_p99=seen["swap_ms"]["p99"],
        s=steady, d=during, a=table["all"], ratio=during["whole_p99"] / steady["whole_p99"],
        first_ratio=during["first_p99"] / steady["first_p99"], **counts,
        **{name: getattr(args, name) for name in ("callers", "steady", "seconds", "every")},
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """1 where a request failed or a reply was not its checkpoint's own."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench.swaps", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to swap")
    parser.add_argument("--steady", type=float, default=60.0, help="how long to measure without swaps before")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two swaps")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--out", type=Path, help="the page to write; default: print the figures only")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="keel-swaps-") as name:
        folder = Path(name)
        (folder / "checkpoints").mkdir()
        refs, port = make_registry(folder / "checkpoints"), free_port()
        command = [sys.executable, "-m", "service.cli", "serve"]
        env, log = environment(folder, port), folder / "gateway.log"
        with serve(command, port=port, ready="/health/ready", log=log, core=None, env=env, patience=600):
            run, counts = asyncio.run(measure(f"http://127.0.0.1:{port}", refs, args))
    seen = figures(run, counts)
    print(json.dumps(seen, indent=1))
    if args.out is not None:
        args.out.write_text(page(seen, args), encoding="utf-8")
    good = counts["replies"] - counts["failed"]
    return int(counts["failed"] > 0 or counts["own"] < good or counts["swaps_refused"] > 0)


if __name__ == "__main__":
    sys.exit(main())
