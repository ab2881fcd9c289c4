"""The key of the action `hash`: made once for a state directory, whoever asks first."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.hash_key import hash_key
from service.settings import Settings


def settings(folder: Path) -> Settings:
    return Settings.load(None, state_dir=folder / "state")


def test_gateways_that_start_at_once_share_one_key(tmp_path: Path) -> None:
    count = 8
    with ThreadPoolExecutor(count) as threads:
        for i in range(25):
            folder, together = tmp_path / str(i), threading.Barrier(count)

            def start(folder: Path = folder, together: threading.Barrier = together) -> bytes:
                together.wait()
                return hash_key(settings(folder))

            keys = {future.result() for future in [threads.submit(start) for _ in range(count)]}
            assert len(keys) == 1
            assert len(keys.pop()) == 32
            assert [path.name for path in (folder / "state").iterdir()] == ["hash.key"]


def test_the_key_is_kept_and_is_its_owners(tmp_path: Path) -> None:
    key = hash_key(settings(tmp_path))
    assert hash_key(settings(tmp_path)) == key
    assert stat.S_IMODE((tmp_path / "state" / "hash.key").stat().st_mode) == 0o600


def test_a_key_that_is_set_is_taken(tmp_path: Path) -> None:
    loaded = Settings.load(None, state_dir=tmp_path / "state", hash_key="chosen")
    assert hash_key(loaded) == b"chosen"
    assert not (tmp_path / "state").exists()
