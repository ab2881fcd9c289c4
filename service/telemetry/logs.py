"""Structured logs on stderr, written by a thread of their own so that a slow reader never stops the loop.

Records carry identifiers, names, counts and times. Prompts and replies are never passed to a logger; that
is a rule for callers, and a test sends marked text through every route and searches the log for it.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

MAX_WAITING = 10_000
INTERVAL = 0.05  # seconds


class Writer:
    """A bounded queue and the thread that empties it. Lines beyond the bound are dropped and counted.

    The thread looks for lines at intervals instead of being woken for each: a wake-up costs the event loop
    more than the line does, because the two threads then contend for the interpreter.
    """

    def __init__(self, stream: TextIO, max_waiting: int = MAX_WAITING) -> None:
        self._stream = stream
        self._max_waiting = max_waiting
        self._lines: deque[str] = deque()
        self._closing = threading.Event()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue a line, without its line feed; never blocks."""
        if len(self._lines) < self._max_waiting:
            self._lines.append(line)
        else:
            self.dropped += 1

    def close(self) -> None:
        """Write what is waiting and stop."""
        self._closing.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._closing.wait(INTERVAL):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        batch = [self._lines.popleft() for _ in range(len(self._lines))]
        if not batch:
            return
        try:
            self._stream.write("\n".join(batch) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more
            self.dropped += len(batch)


class _Sink:
    """What structlog calls a logger: something with one method per level."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def msg(self, message: str) -> None:
        self._writer.write(message)

    debug = info = warning = error = critical = exception = msg


class _StdlibHandler(logging.Handler):
    """Brings the records of libraries (uvicorn, aiohttp, asyncio) into the same stream and form."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        failure = record.exc_info[1] if record.exc_info else None
        self._log.log(
            record.levelno,
            record.getMessage(),
            logger=record.name,
            **({"exc_info": failure} if failure else {}),
        )


def _json(_: object, __: str, event: EventDict) -> str:
    # orjson writes a datetime in less time than structlog's TimeStamper takes to make a text of it.
    event["time"] = datetime.now(UTC)
    return orjson.dumps(event, default=str, option=orjson.OPT_UTC_Z).decode()


def configure(
    format: Literal["auto", "json", "console"] = "auto", level: str = "info", stream: TextIO | None = None
) -> tuple[FilteringBoundLogger, Writer]:
    """The process' logger, and the writer to close at the end.

    `auto` is the console's form where a person reads on a terminal, and JSON elsewhere.
    """
    stream = stream or sys.stderr
    writer = Writer(stream)
    console = format == "console" or (format == "auto" and stream.isatty())
    last: list[Any] = (
        [
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.dev.ConsoleRenderer(colors=stream.isatty()),
        ]
        if console
        else [structlog.processors.format_exc_info, _json]
    )
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Sink(writer),
        cache_logger_on_first_use=False,
    )
    log: FilteringBoundLogger = structlog.get_logger().bind()  # bound: the lazy one is assembled at each call
    handler = _StdlibHandler(log)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))
    return log, writer
