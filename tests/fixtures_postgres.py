"""A real PostgreSQL for the tests that need one: one server a run, in a temporary folder, a database a test.

Tests that use it carry `@pytest.mark.servers("initdb")`. PostgreSQL refuses to run as root: then it is run as
the user that Debian's package brings.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Postgres:
    """A running server."""

    folder: Path
    port: int
    prefix: tuple[str, ...]

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's own programs, to its end."""
        subprocess.run(
            [*self.prefix, _program(program), *arguments], check=True, capture_output=True, cwd=self.folder
        )

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"keel_{secrets.token_hex(6)}"
        self.run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "keel", name)
        return f"postgresql://keel@127.0.0.1:{self.port}/{name}"


def _program(name: str) -> str:
    found = shutil.which(name) or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    assert found is not None, f"{name} is not installed"
    return found


def _prefix() -> tuple[str, ...]:
    if os.geteuid() != 0:
        return ()
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """The server; started with the first test that asks for it."""
    prefix, port = _prefix(), _free_port()
    # Not pytest's own folder: another user has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="keel-postgres-"))
    if prefix:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
    server = Postgres(folder, port, prefix)
    data = str(folder / "data")
    try:
        server.run("initdb", "-D", data, "-U", "keel", "--auth=trust", "--no-sync", "-E", "UTF8")
        options = (
            f"-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= "
            "-c fsync=off -c max_connections=60 -c shared_buffers=16MB"
        )
        log = str(folder / "log")
        server.run("pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start")
        try:
            yield server
        finally:
            server.run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> str:
    """An empty database of this test's own."""
    return postgres_server.new_database()
