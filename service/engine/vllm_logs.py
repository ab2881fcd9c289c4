"""vLLM's output: what of it is kept, what of it says how far loading has got.

Until a server is ready no request has reached it, so its lines can be kept as they are. From then on a line
might quote a prompt (an exception's message, a request logged by a flag somebody set), so only what can't
is kept: the place a record comes from, its level, stack frames, exception types, and throughput figures.
"""

from __future__ import annotations

import re
from collections import deque

import structlog

logger = structlog.get_logger("keel.vllm")

_MAX_LINE = 2000
# (APIServer pid=4711) INFO 11-20 11:17:10 [loggers.py:271] message
_RECORD = re.compile(
    r"^(?:\([^)]*\) )?(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ "
    r"\[(?P<place>[\w./]+:\d+)\] ?(?P<message>.*)$"
)
_FRAME = re.compile(r'^(?:\([^)]*\) )?\s*File "(?P<file>[^"]+)", line \d+')
_EXCEPTION = re.compile(
    r"^(?:\([^)]*\) )?(?P<type>(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit|Warning))(?::|$)"
)
_FIGURES = re.compile(r"^loggers\.py:")

_PHASES = tuple(
    (re.compile(pattern), phase)
    for pattern, phase in (
        (r"non-default args", "reading the checkpoint"),
        (r"Resolved architecture", "checking the model's configuration"),
        (r"Initializing a V\d LLM engine", "starting the engine"),
        (r"[Ll]oading (model|weights|safetensors)|Starting to load model", "loading the weights"),
        (r"torch\.compile takes|[Cc]ompiling|Dynamo bytecode", "compiling"),
        (r"KV cache", "allocating the KV cache"),
        (r"[Cc]apturing CUDA graph", "capturing CUDA graphs"),
        (r"Starting vLLM server|Started server process|Application startup", "opening the server"),
    )
)


def phase_of(line: str) -> str | None:
    """What vLLM is doing by this line, in words for a progress display; None where it says nothing new."""
    return next((phase for pattern, phase in _PHASES if pattern.search(line)), None)


def without_prompts(line: str) -> str | None:
    """What may be kept of a line that a serving vLLM wrote; None where nothing of it may."""
    record = _RECORD.match(line)
    if record is not None:
        if _FIGURES.match(record["place"]):
            return line
        inner = _FRAME.match(record["message"].strip()) or _EXCEPTION.match(record["message"])
        detail = f" {inner[0].strip().rstrip(':')}" if inner else ""
        return f"{record['level']} [{record['place']}]{detail}"
    frame = _FRAME.match(line)
    if frame is not None:
        return frame[0].strip()
    exception = _EXCEPTION.match(line)
    return exception["type"] if exception is not None else None


class LogCapture:
    """Takes a child's output as bytes and keeps its last lines."""

    def __init__(self, name: str, keep: int = 200) -> None:
        self._name = name
        self._lines: deque[str] = deque(maxlen=keep)
        self._partial = b""
        self.serving = False  # set once requests may reach the child
        self.ending = False  # set once it is told to end: that its engine is gone then is no news

    def feed(self, data: bytes) -> list[str]:
        """Take some output, cut anywhere; returns the lines that it completes, as far as they are kept."""
        *lines, rest = (self._partial + data).split(b"\n")
        self._partial = rest[:_MAX_LINE]
        kept = [line for raw in lines if (line := self._keep(raw)) is not None]
        self._lines.extend(kept)
        return kept

    def last(self, count: int = 15) -> list[str]:
        """The last lines kept, oldest first."""
        return list(self._lines)[-count:]

    def mentions(self, *needles: str) -> bool:
        """Whether any kept line contains one of these."""
        return any(needle in line for line in self._lines for needle in needles)

    def clear(self) -> None:
        """Begin anew, for the next child."""
        self._lines.clear()
        self._partial = b""
        self.serving = self.ending = False

    def _keep(self, raw: bytes) -> str | None:
        line = raw[:_MAX_LINE].decode("utf-8", "replace").rstrip()
        record = _RECORD.match(line)
        kept = without_prompts(line) if self.serving else line
        if not kept:
            return None
        # vLLM writes a hundred INFO lines at every start, which are not news of the gateway.
        serious = record is not None and record["level"] in ("ERROR", "CRITICAL")
        log = logger.error if serious and not self.ending else logger.debug
        log("vllm", child=self._name, line=kept)
        return kept
