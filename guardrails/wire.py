"""Messages between the gateway and its guard workers: a length, then a pickle, over a socket pair.

Pickle is safe here because both ends are ours: the worker is a child that the gateway started itself, the
socket pair has no name that another process could connect to, and neither end forwards bytes it received.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

HEADER = struct.Struct("!Q")
PROTOCOL = 5


def dump(value: Any) -> bytes:
    """`value` pickled. Raises what pickle raises when it can't be."""
    return pickle.dumps(value, PROTOCOL)


def load(data: bytes | bytearray | memoryview) -> Any:
    """The value that our own other end pickled."""
    return pickle.loads(data)  # noqa: S301  # see the module's docstring


def frame(message: Any) -> bytes:
    """`message` as it travels."""
    body = dump(message)
    return HEADER.pack(len(body)) + body


def send(sock: socket.socket, message: Any) -> None:
    """Send one message, blocking. For the worker's end."""
    sock.sendall(frame(message))


def receive(sock: socket.socket) -> Any:
    """The next message, blocking. Raises `EOFError` when the other end is gone. For the worker's end."""
    (size,) = HEADER.unpack(_exactly(sock, HEADER.size))
    return load(_exactly(sock, size))


def _exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        if not count:
            raise EOFError("the gateway closed the connection")
        view = view[count:]
    return data


def frame_end(buffer: bytes | bytearray) -> int | None:
    """Where the first frame in `buffer` ends, or None while it isn't complete."""
    if len(buffer) < HEADER.size:
        return None
    (size,) = HEADER.unpack_from(buffer)
    end = HEADER.size + int(size)
    return end if len(buffer) >= end else None
