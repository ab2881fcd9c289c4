"""The LoRA adapters of one managed vLLM: loaded while it runs, unloaded when nobody uses them any more.

An adapter's name is its checkpoint's `name@digest`. vLLM keys its prefix cache by that name, so one that came
to mean other weights would be answered from the old one's keys.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from service.engine.errors import UpstreamStatusError
from service.engine.users import Users

if TYPE_CHECKING:  # an engine has these
    from service.engine.engine import Engine

_THERE = b"already been loaded"
_GONE = 404


class Adapters:
    """What a managed engine has loaded. Raises `UpstreamError` where vLLM refuses."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._users: dict[str, Users] = {}
        self._changing = asyncio.Lock()

    def users(self, name: str) -> Users:
        """Who is bound to the adapter."""
        return self._users.setdefault(name, Users())

    @property
    def loaded(self) -> frozenset[str]:
        """The names of those that requests can ask for."""
        child = self._engine.child
        return frozenset(child.adapters) if child is not None else frozenset()

    async def load(self, name: str, path: Path) -> None:
        """Load the adapter in folder `path`, unless it is there."""
        child = self._engine.child
        if child is None:
            raise RuntimeError("only a managed vLLM takes adapters")
        async with self._changing:
            if name in child.adapters:
                return
            body = orjson.dumps({"lora_name": name, "lora_path": str(path)})
            try:
                await self._engine.complete("/v1/load_lora_adapter", body)
            except UpstreamStatusError as error:
                if _THERE not in error.body:  # a name is never used twice, so there it is
                    raise
            child.adapters[name] = path

    async def unload(self, name: str) -> None:
        """Forget the adapter. Requests that it answers now are not cut."""
        child = self._engine.child
        async with self._changing:
            if child is None or child.adapters.pop(name, None) is None:
                return
            self._users.pop(name, None)
            try:
                await self._engine.complete("/v1/unload_lora_adapter", orjson.dumps({"lora_name": name}))
            except UpstreamStatusError as error:
                if error.status != _GONE:
                    raise
