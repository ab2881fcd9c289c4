"""What is kept of vLLM's output before and while it serves, and the phases read from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.engine.vllm_logs import LogCapture, phase_of, without_prompts

RECORD = "(APIServer pid=7) {} 11-20 11:17:10 [{}] {}"


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        (
            RECORD.format("INFO", "api_utils.py:286", "non-default args: {'port': 1}"),
            "reading the checkpoint",
        ),
        (
            RECORD.format("INFO", "model.py:733", "Resolved architecture: LlamaForCausalLM"),
            "checking the model's configuration",
        ),
        (
            RECORD.format("INFO", "core.py:133", "Initializing a V1 LLM engine (v0.32.0)"),
            "starting the engine",
        ),
        (RECORD.format("INFO", "r.py:68", "Starting to load model /x..."), "loading the weights"),
        ("Loading safetensors checkpoint shards:   0% Completed", "loading the weights"),
        (RECORD.format("INFO", "k.py:1", "CPU KV cache size: 262,144 tokens"), "allocating the KV cache"),
        ("Capturing CUDA graphs (mixed prefill-decode): 12%", "capturing CUDA graphs"),
        (RECORD.format("INFO", "entry.py:140", "Starting vLLM server on http://x"), "opening the server"),
        (RECORD.format("WARNING", "vllm.py:1712", "TORCH_COMPILE_DISABLE is set"), None),
        ("", None),
    ],
)
def test_phases(line: str, phase: str | None) -> None:
    assert phase_of(line) == phase


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (RECORD.format("INFO", "loggers.py:271", "Engine 000: Avg prompt throughput: 1.0 tokens/s"), "whole"),
        (RECORD.format("INFO", "logger.py:39", "Received request: prompt: 'x'"), "INFO [logger.py:39]"),
        (RECORD.format("ERROR", "serving.py:5", "Error with x"), "ERROR [serving.py:5]"),
        (
            RECORD.format("ERROR", "core.py:9", '  File "/v/core.py", line 12, in f'),
            'ERROR [core.py:9] File "/v/core.py", line 12',
        ),
        (
            RECORD.format("ERROR", "core.py:9", "torch.OutOfMemoryError: x"),
            "ERROR [core.py:9] torch.OutOfMemoryError",
        ),
        ("ValueError: x is not allowed", "ValueError"),
        ("vllm.v1.engine.exceptions.EngineDeadError: x", "vllm.v1.engine.exceptions.EngineDeadError"),
        ('  File "/v/serving.py", line 7, in create', 'File "/v/serving.py", line 7'),
        ("    raise ValueError(prompt)", None),
        ("free text of a prompt", None),
        ("Tell me: is this an Error: or not", None),
    ],
)
def test_what_may_be_kept_while_serving(line: str, kept: str | None) -> None:
    assert without_prompts(line) == (line if kept == "whole" else kept)


# Words with blanks between: what is kept of a line may hold names from vLLM's code, never a sentence.
PROMPTS = st.text(alphabet="abcdef XYZ.,!?'\"(){}\\n", min_size=12).filter(lambda text: text.count(" ") > 2)


@given(prompt=PROMPTS)
def test_no_prompt_survives_in_any_position(prompt: str) -> None:
    capture = LogCapture("m")
    capture.serving = True
    for template in (
        "{}",
        "ValueError: {}",
        "{}: ValueError",
        "pydantic.ValidationError: 1 error, input_value='{}'",
        RECORD.format("INFO", "logger.py:39", "Received request {}"),
        RECORD.format("ERROR", "serving.py:39", "ValueError: {}"),
        '  File "/x.py", line 3, in {}',
    ):
        capture.feed(template.format(prompt).encode() + b"\n")
    assert prompt.strip() not in "\n".join(capture.last(100))


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_output_may_be_cut_anywhere(data: bytes, cuts: list[int]) -> None:
    whole, pieces = LogCapture("m"), LogCapture("m")
    whole.feed(data + b"\n")
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    for start, end in zip(edges, [*edges[1:], len(data)], strict=True):
        pieces.feed(data[start:end])
    pieces.feed(b"\n")
    assert pieces.last(500) == whole.last(500)


def test_memory_is_bounded() -> None:
    capture = LogCapture("m", keep=10)
    for _ in range(100):
        capture.feed(b"x" * 10_000)
    assert len(capture.feed(b"\n")[0]) <= 2000
    capture.feed(b"line\n" * 1000)
    assert capture.last(1000) == ["line"] * 10


def test_the_next_child_begins_anew() -> None:
    capture = LogCapture("m")
    capture.serving = True
    capture.feed(b"ValueError: x\nhalf a li")
    capture.clear()
    capture.feed(b"loading something\n")
    assert capture.last() == ["loading something"]
    assert capture.mentions("something")
    assert not capture.mentions("ValueError")


def test_errors_are_told_until_the_child_is_to_end() -> None:
    line = (RECORD.format("ERROR", "core.py:9", "vllm.v1.engine.exceptions.EngineDeadError") + "\n").encode()
    logs = LogCapture("demo")
    with capture_logs() as told:
        logs.feed(line)
        logs.ending = True
        logs.feed(line)
        logs.clear()
        logs.feed(line)
    assert [entry["log_level"] for entry in told] == ["error", "debug", "error"]
