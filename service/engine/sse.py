"""An incremental parser for server-sent events, after the WHATWG HTML standard, section 9.2.6.

It takes bytes cut anywhere and returns the data of each event that is complete. Events of upstreams are
unnamed; fields other than `data` are passed over.
"""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"


class SseError(ValueError):
    """A line or an event is larger than allowed."""


class SseParser:
    """Bytes in, payloads out. One per stream; work is linear in the bytes fed.

    `max_event` bounds, in bytes, a line as well as the joined data of one event.
    """

    __slots__ = ("_after_cr", "_data", "_data_size", "_max_event", "_partial", "_partial_size", "_started")

    def __init__(self, max_event: int = 1 << 20) -> None:
        self._max_event = max_event
        self._partial: list[bytes] = []  # pieces of the line whose end has not come
        self._partial_size = 0
        self._data: list[bytes] = []  # data lines of the event whose end has not come
        self._data_size = 0
        self._after_cr = False  # a line feed that comes next belongs to a line already ended
        self._started = False

    @property
    def pending(self) -> bool:
        """Whether an event has begun that no blank line has ended."""
        return bool(self._partial_size or self._data)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads of all events that `chunk` completes, oldest first.

        Raises `SseError` where a line or an event exceeds the bound.
        """
        # One event in one chunk is how vLLM writes, and by far the most common case.
        if (
            not self._partial_size
            and not self._data
            and self._started
            and chunk.startswith(b"data: ")
            and chunk.find(b"\n") == len(chunk) - 2
            and chunk.endswith(b"\n\n")
            and b"\r" not in chunk
            and len(chunk) <= self._max_event
        ):
            return [chunk[6:-2]]
        return self._feed_lines(chunk)

    def _feed_lines(self, chunk: bytes) -> list[bytes]:
        if not self._started:
            chunk = self._skip_bom(chunk)
        if not chunk:
            return []
        if self._after_cr:
            self._after_cr = False
            if chunk[0] == 0x0A:
                chunk = chunk[1:]
        events: list[bytes] = []
        for piece in chunk.splitlines(keepends=True):  # for bytes: CR, LF and CRLF, nothing else
            line = piece.rstrip(b"\r\n")
            if len(line) + self._partial_size > self._max_event:
                raise SseError(f"a line exceeds {self._max_event} bytes")
            if len(line) == len(piece):
                self._partial.append(piece)
                self._partial_size += len(piece)
                break
            if self._partial_size:
                line = b"".join((*self._partial, line))
                self._partial.clear()
                self._partial_size = 0
            self._end_line(line, events)
        self._after_cr = chunk.endswith(b"\r")
        return events

    def _skip_bom(self, chunk: bytes) -> bytes:
        chunk = b"".join((*self._partial, chunk))
        self._partial.clear()
        self._partial_size = 0
        if len(chunk) < 3 and _BOM.startswith(chunk):
            self._partial.append(chunk)
            self._partial_size = len(chunk)
            return b""
        self._started = True
        return chunk.removeprefix(_BOM)

    def _end_line(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data.clear()
                self._data_size = 0
            return
        name, _, value = line.partition(b":")
        if name != b"data":
            return
        value = value.removeprefix(b" ")
        self._data_size += len(value) + 1
        if self._data_size > self._max_event + 1:
            raise SseError(f"an event exceeds {self._max_event} bytes")
        self._data.append(value)
