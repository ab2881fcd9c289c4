"""What each alias last served well here, kept over restarts.

An alias may come to mean something that this gateway refused, or that it has not yet looked at when it is
killed. Started again, it knows from here what it can fall back on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import structlog

from policies.registry import Registry, RegistryError, write_atomically

logger = structlog.get_logger("keel.hotload")


class Accepted:
    """A small file in the state folder. Its methods touch the disk: not for the event loop."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "checkpoints.json"

    def read(self, registry: Registry) -> dict[str, str]:
        """Alias → `name@digest`, of those that are still in the registry."""
        try:
            table = json.loads(self._path.read_bytes())
            entries = {str(alias): str(ref) for alias, ref in table["aliases"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("accepted_unreadable", path=str(self._path), error=str(error))
            return {}
        return {alias: ref for alias, ref in entries.items() if _there(registry, ref)}

    def write(self, pins: Mapping[str, str]) -> None:
        """Remember what is served now."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._path, (json.dumps({"aliases": dict(pins)}, indent=1) + "\n").encode())


def _there(registry: Registry, ref: str) -> bool:
    try:
        registry.resolve(ref)
    except RegistryError:
        return False
    return True
