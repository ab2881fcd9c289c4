"""The key of the action `hash`: given in the settings, or made once for a state directory."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from service.settings import Settings


def hash_key(settings: Settings) -> bytes:
    """What the digests of the action `hash` are keyed with: set, or made once and kept."""
    if settings.hash_key is not None:
        return settings.hash_key.get_secret_value().encode()
    path: Path = settings.state_dir / "hash.key"
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Two gateways may start at once. A link appears with all that is in the file, and to one of them only.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".hash-")  # created 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    return path.read_bytes()
