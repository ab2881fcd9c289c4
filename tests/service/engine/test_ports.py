"""Whose a loopback port is."""

from __future__ import annotations

import os
import socket

from service.engine.ports import free_port, listens


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def test_only_the_holder_of_the_socket_listens() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        before = listens(os.getpid(), port)
        listener.listen()
        assert [before, listens(os.getpid(), port)] == [False, True]
        assert not listens(os.getppid(), port)
        assert not listens(2**22 + 1, port)  # above the kernel's largest process id
    assert not listens(os.getpid(), port)
