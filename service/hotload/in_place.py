"""Other weights of the same shapes, read by the vLLM that runs: no memory for a second one is needed.

It is the gateway that waits, not vLLM: who comes meanwhile is held at the door, and what is in flight ends
first. Were vLLM to freeze its requests instead, their replies would begin with the old weights and end with
the new.

    close the door ─► the last request ends ─► /pause ─► reload_weights ─► /reset_prefix_cache ─► /resume
                   ─► canary ─► switch ─► open the door
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import orjson
import structlog

from service.catalog import Catalog
from service.engine.engine import Engine
from service.engine.errors import UpstreamError

logger = structlog.get_logger("keel.hotload")


class NotReloaded(Exception):
    """The weights were not read, or are not to be relied on; the message says why."""


@contextlib.asynccontextmanager
async def quiet(catalog: Catalog, engine: Engine, seconds: float) -> AsyncIterator[None]:
    """Nobody uses the engine within the block; who comes waits until its end.

    Raises `NotReloaded` where requests are still in flight after `seconds`.
    """
    with catalog.held_back():
        if not await engine.users.gone(seconds):
            raise NotReloaded(
                f"{engine.users.count} requests were still in flight after {seconds:g} s; try again, or use "
                "engine.swap: beside"
            )
        yield


async def reload(engine: Engine, folder: Path) -> None:
    """Have the engine's vLLM read the weights in `folder`, and forget what it computed from the former.

    Raises `NotReloaded`.
    """
    try:
        await engine.complete("/pause?mode=wait", b"")
        order = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        await engine.complete("/collective_rpc", orjson.dumps(order))
        reset = await engine.complete("/reset_prefix_cache", b"")
        if orjson.loads(reset.body).get("success") is not True:
            raise NotReloaded(
                "vLLM could not reset its prefix cache, and would answer from the former's keys"
            )
        await engine.complete("/resume", b"")
    except UpstreamError as error:
        raise NotReloaded(f"vLLM did not read the weights: {error}") from error
    except orjson.JSONDecodeError:
        raise NotReloaded("vLLM's answer to /reset_prefix_cache can't be read") from None


@contextlib.asynccontextmanager
async def other_weights(engine: Engine, new: Path, old: Path) -> AsyncIterator[None]:
    """The engine has the new weights within the block, and keeps them where that ends well.

    Otherwise it has the old ones again afterwards; where it does not read them, it is started anew.
    """
    child = engine.child
    if child is None:
        raise NotReloaded("only a managed vLLM reads other weights")
    try:
        await reload(engine, new)
        yield
    except BaseException:
        try:
            await reload(engine, old)
        except NotReloaded as error:
            logger.error("vllm_weights_unknown", child=child.name, error=str(error))
            child.renew()
        raise
    child.config = replace(child.config, model=new)  # what it begins with when it is started again
