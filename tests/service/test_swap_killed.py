"""A gateway that is killed with kill -9 while a checkpoint takes another's place."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import httpx
import pytest

from policies.registry import Registry
from tests.fakes.vllm_hotload import install
from tests.hotload import publish_adapter, publish_tiny
from tests.service.hot_gateway import HotGateway, hot_gateway

pytestmark = pytest.mark.timeout(900)


def test_it_comes_back_with_the_former_or_the_new_one_whole(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    base = publish_tiny(root, "base", 1)
    for seed, name in enumerate(("one", "two")):
        publish_adapter(root, name, base, seed)
    Registry(root).point("chat", "one")
    settings = {**install(tmp_path / "fake"), "KEEL_ENGINE__ADAPTERS": "true"}
    with hot_gateway(tmp_path, root, {"hot": "model: {checkpoint: chat}\n"}, **settings) as gateway:
        for attempt, new in enumerate(("two", "one", "two")):
            former = Registry(root).resolve("chat").name
            swap = threading.Thread(target=_promote, args=(gateway, new))
            swap.start()
            time.sleep(0.03 * attempt)  # somewhere between the question and its answer
            gateway.kill()
            swap.join()
            gateway.start()
            text, checkpoint = gateway.ask()
            name = checkpoint.partition("@")[0]
            assert name in (former, new)
            assert {word.rstrip("0123456789") for word in text.split()} == {name}
            assert Registry(root).resolve("chat").ref == checkpoint


def _promote(gateway: HotGateway, ref: str) -> None:
    with contextlib.suppress(httpx.HTTPError):  # it was killed
        gateway.admin("/promote", {"ref": ref, "alias": "chat"})
