"""Tokens without an adapter are spared the last slot's, in vLLM's own operations."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from service.engine.vllm_lora import register

PROGRAM = """
import json, sys, torch
from service.engine.vllm_lora import register

def updates():
    from vllm.lora.punica_wrapper import punica_cpu
    inputs, slots = torch.ones(3, 4), torch.tensor([0, -1, 1])
    a, b = torch.ones(2, 1, 2, 4), torch.ones(2, 1, 5, 2)
    a[1] *= 2  # the last slot's adapter
    low, high = torch.zeros(3, 2), torch.ones(3, 5)
    punica_cpu.bgmv_shrink(inputs, a, low, slots, 0.5)
    punica_cpu.bgmv_expand(low, b, high, slots, True)
    long, lengths = torch.zeros(4, 2), torch.tensor([1, 2, 1])
    punica_cpu.sgmv_shrink(torch.ones(4, 4), a, long, None, lengths, slots, 3, 2, 4, 0.5)
    return high[:, 0].tolist(), long[:, 0].tolist()

before = updates()
register()
register()
json.dump([before, updates()], sys.stdout)
"""


@pytest.mark.vllm
def test_a_token_without_an_adapter_gets_no_update() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=300, check=True)
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert before == [[5, 9, 9], [2, 4, 4, 4]]  # what is mended; once vLLM does it itself, the plugin can go
    assert after == [[5, 1, 9], [2, 0, 0, 4]]


def test_vllm_finds_the_plugin() -> None:
    (found,) = (entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "keel_lora")
    assert found.load() is register
