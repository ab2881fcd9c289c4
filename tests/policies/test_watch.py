"""Edited policy files take effect, however they are saved."""

# ruff: noqa: ASYNC240  (short writes to a temporary folder are what is tested)

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import watchfiles

from policies.load import PolicyLibrary, ReloadOutcome
from policies.watch import fingerprint, settled_changes

TEXT = "name: x\nmodel: {{checkpoint: demo-chat}}\nmax_n: {}\n"


@asynccontextmanager
async def watching(library: PolicyLibrary, poll: float = 30.0) -> AsyncIterator[asyncio.Queue[ReloadOutcome]]:
    outcomes: asyncio.Queue[ReloadOutcome] = asyncio.Queue()

    async def watch() -> None:
        async for outcome in library.watch(poll=poll, settle=0.05):
            outcomes.put_nowait(outcome)

    task = asyncio.create_task(watch())
    await asyncio.sleep(0.2)  # until the notifier has begun
    try:
        yield outcomes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def within(outcomes: asyncio.Queue[ReloadOutcome], seconds: float = 10.0) -> ReloadOutcome:
    return await asyncio.wait_for(outcomes.get(), seconds)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "x.yaml").write_text(TEXT.format(1))
    return folder / "x.yaml"


@pytest.mark.parametrize("how", ["in place", "renamed over", "deleted and written"])
async def test_however_an_editor_saves(path: Path, how: str) -> None:
    library = PolicyLibrary([path.parent], shipped=None)
    async with watching(library) as outcomes:
        if how == "in place":
            path.write_text(TEXT.format(2))
        elif how == "renamed over":
            new = path.with_name(".x.yaml.new")
            new.write_text(TEXT.format(2))
            new.rename(path)
        else:
            path.rename(path.with_name("x.yaml~"))
            path.write_text(TEXT.format(2))
        assert (await within(outcomes)).changed == ("x",)
        assert library.get("x").spec.max_n == 2


async def test_a_save_in_pieces_is_read_once_it_is_whole(path: Path) -> None:
    """The first half of a policy may be a valid policy with fewer guards."""
    library = PolicyLibrary([path.parent], shipped=None)
    async with watching(library) as outcomes:
        with path.open("w") as file:
            for line in [*TEXT.format(2).splitlines(keepends=True), "input:\n", "  - {guard: pii}\n"]:
                file.write(line)
                file.flush()
                await asyncio.sleep(0.01)
        outcome = await within(outcomes)
    assert outcome.ok and [guard.guard for guard in library.get("x").spec.input] == ["pii"]


async def test_a_wrong_edit_is_told_once(path: Path) -> None:
    library = PolicyLibrary([path.parent], shipped=None)
    async with watching(library, poll=0.05) as outcomes:
        path.write_text(TEXT.format("many"))
        assert not (await within(outcomes)).ok
        await asyncio.sleep(0.3)
        assert outcomes.empty(), "looked again several times, said nothing more"
    assert library.get("x").spec.max_n == 1


async def test_taking_a_wrong_edit_back_is_told(path: Path) -> None:
    """What is served is as it was: nothing changed, but nothing is wrong any more."""
    library = PolicyLibrary([path.parent], shipped=None)
    before = path.read_text()
    async with watching(library, poll=0.05) as outcomes:
        path.write_text(TEXT.format("many"))
        assert not (await within(outcomes)).ok
        path.write_text(before)
        outcome = await within(outcomes)
        assert outcome.ok and outcome.mended and not outcome.changed


async def test_a_deleted_file_and_a_new_one(path: Path) -> None:
    library = PolicyLibrary([path.parent], shipped=None)
    async with watching(library) as outcomes:
        path.unlink()
        assert (await within(outcomes)).removed == ("x",)
        path.with_name("y.yml").write_text(TEXT.format(1).replace("name: x", "name: y"))
        assert (await within(outcomes)).added == ("y",)


async def test_a_swapped_config_map(tmp_path: Path) -> None:
    """As Kubernetes does it: files link through `..data`, which is repointed by a rename."""
    folder = tmp_path / "mounted"
    for number in (1, 2):
        (folder / f"..v{number}").mkdir(parents=True)
        (folder / f"..v{number}" / "x.yaml").write_text(TEXT.format(number))
    os.symlink("..v1", folder / "..data")
    os.symlink("..data/x.yaml", folder / "x.yaml")
    library = PolicyLibrary([folder], shipped=None)
    async with watching(library) as outcomes:
        os.symlink("..v2", folder / "..data_tmp")
        os.rename(folder / "..data_tmp", folder / "..data")
        assert (await within(outcomes)).changed == ("x",)
    assert library.get("x").spec.max_n == 2


async def test_edits_behind_a_link_are_seen_by_looking(path: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.yaml"
    path.rename(elsewhere)
    os.symlink(elsewhere, path)
    library = PolicyLibrary([path.parent], shipped=None)
    async with watching(library, poll=0.1) as outcomes:
        elsewhere.write_text(TEXT.format(2))
        assert (await within(outcomes)).changed == ("x",)


async def test_without_notifications_it_looks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> AsyncIterator[object]:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(watchfiles, "awatch", exhausted)
    library = PolicyLibrary([path.parent], shipped=None)
    async with watching(library, poll=0.1) as outcomes:
        path.write_text(TEXT.format(2))
        assert (await within(outcomes)).changed == ("x",)


async def test_nothing_is_read_while_files_keep_changing(path: Path) -> None:
    seen = fingerprint([path.parent])
    changes = settled_changes([path.parent], lambda: seen, poll=0.05, settle=1.0)
    pending = asyncio.ensure_future(anext(changes))
    stop = time.monotonic() + 2
    size = 0
    while time.monotonic() < stop:
        size += 1
        path.write_text("#" * size)
        await asyncio.sleep(0.02)
    assert not pending.done()
    await asyncio.wait_for(pending, 20)
    await changes.aclose()  # type: ignore[attr-defined]
