"""Loopback ports: finding a free one, and knowing whose it is."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path

_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp, see proc(5)


def free_port() -> int:
    """A loopback port that nothing listens on now; somebody may take it before the caller does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def listens(pid: int, port: int) -> bool:
    """Whether process `pid` itself holds the listening socket of this loopback port.

    Where there is no /proc to tell, on other systems than Linux, the answer is yes.
    """
    if not sys.platform.startswith("linux"):
        return True
    address = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), sys.byteorder):08X}:{port:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1] == address and row[3] == _LISTEN}
    with contextlib.suppress(OSError):  # the process may be gone, or a descriptor closed meanwhile
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") in sockets:
                    return True
    return False
