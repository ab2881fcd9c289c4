"""API keys: who calls.

A key is `keel-` and 256 random bits. What is stored is its SHA-256: a slow password hash would protect
guessable secrets, and these can't be guessed. The file is written atomically, readable by its owner only.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

PREFIX = "keel-"
Role = Literal["api", "admin", "rater"]


class KeyFileError(Exception):
    """The key file can't be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A known caller. Limits are per minute; None means no limit.

    role: "api" calls `/v1`; "admin" may do everything; "rater" may compare replies and give feedback.
    """

    name: str
    sha256: str
    role: Role = "api"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    created: int = 0

    @property
    def admin(self) -> bool:
        return self.role == "admin"

    @property
    def limited(self) -> bool:
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


def digest(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new_key() -> str:
    """A fresh key, URL-safe."""
    return PREFIX + secrets.token_urlsafe(32)


class KeyFile:
    """The callers in a file, and the ways to change it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> list[Caller]:
        """All callers; none where the file doesn't exist. Raises `KeyFileError`."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KeyFileError(f"the key file {self.path} can't be read: {error.strerror}") from error
        try:
            records: list[dict[str, Any]] = json.loads(raw)["keys"]
            return [_caller(record) for record in records]
        except (ValueError, KeyError, TypeError) as error:
            raise KeyFileError(
                f"the key file {self.path} is damaged ({error}); restore it or remove it"
            ) from error

    def create(
        self,
        name: str,
        *,
        role: Role = "api",
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> str:
        """Add a caller and return its key, which is shown this once and stored nowhere."""
        callers = self.load()
        if any(caller.name == name for caller in callers):
            raise KeyFileError(f"a key named {name!r} exists; choose another name, or revoke it first")
        key = new_key()
        self._write(
            [
                *callers,
                Caller(
                    name,
                    digest(key),
                    role=role,
                    requests_per_minute=requests_per_minute,
                    tokens_per_minute=tokens_per_minute,
                    created=int(time.time()),
                ),
            ]
        )
        return key

    def revoke(self, name: str) -> None:
        """Remove a caller. Running gateways notice within seconds."""
        callers = self.load()
        kept = [caller for caller in callers if caller.name != name]
        if len(kept) == len(callers):
            known = ", ".join(caller.name for caller in callers) or "none"
            raise KeyFileError(f"there is no key named {name!r}; known names: {known}")
        self._write(kept)

    def _write(self, callers: list[Caller]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".keys-")  # created 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"keys": [asdict(caller) for caller in callers]}, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise


def _caller(record: dict[str, Any]) -> Caller:
    """Before there were roles, a record said only whether it was an admin's."""
    admin = record.pop("admin", False)
    return Caller(**{"role": "admin" if admin else "api", **record})


class Callers:
    """Who may call a running gateway: the key file's callers, and keys given in its settings."""

    def __init__(
        self,
        file: KeyFile,
        keys: Iterable[str] = (),
        admin_key: str | None = None,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        """The two limits are for keys that bring none of their own."""
        self._file = file
        self._limits = (requests_per_minute, tokens_per_minute)
        self._fixed = [Caller(f"settings-{i}", digest(key)) for i, key in enumerate(keys, 1)]
        if admin_key:
            self._fixed.append(Caller("settings-admin", digest(admin_key), "admin"))
        self._stamp: tuple[int, int, int] | None = None
        self._by_digest: dict[str, Caller] = {}
        self.refresh()

    @property
    def required(self) -> bool:
        """Whether a key must be shown: as soon as there is one for `/v1`."""
        return self._required

    @property
    def names(self) -> frozenset[str]:
        """All callers, as records name them."""
        return frozenset(caller.name for caller in self._by_digest.values())

    def find(self, key: str) -> Caller | None:
        """The caller whose key this is.

        The table is searched by the key's hash, of which a guesser can choose no prefix, so the time that
        the search takes tells nothing; the last comparison is constant-time all the same.
        """
        presented = digest(key)
        caller = self._by_digest.get(presented)
        if caller is None or not hmac.compare_digest(caller.sha256, presented):
            return None
        return caller

    def everyone(self) -> list[Caller]:
        """All callers as they are known now."""
        return list(self._by_digest.values())

    def refresh(self) -> bool:
        """Read the file again if it has changed; True if it had. Raises `KeyFileError`."""
        stamp = self._file_stamp()
        if stamp == self._stamp:
            return False
        callers = [self._with_limits(caller) for caller in (*self._file.load(), *self._fixed)]
        self._by_digest = {caller.sha256: caller for caller in callers}
        # Revoking the last key must not open the door that it had closed.
        self._required = any(caller.role == "api" for caller in callers) or getattr(self, "_required", False)
        self._stamp = stamp
        return True

    def _with_limits(self, caller: Caller) -> Caller:
        if caller.role != "api":
            return caller
        requests, tokens = self._limits
        return replace(
            caller,
            requests_per_minute=requests
            if caller.requests_per_minute is None
            else caller.requests_per_minute,
            tokens_per_minute=tokens if caller.tokens_per_minute is None else caller.tokens_per_minute,
        )

    def _file_stamp(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._file.path)
        except OSError:
            return (0, 0, 0)
        return (status.st_mtime_ns, status.st_size, status.st_ino)
