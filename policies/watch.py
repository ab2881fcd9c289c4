"""When to look at policy files again: after they changed, and then stayed as they are for a moment.

Notifications of the file system say early that something happened; a look at the files' times, sizes and
targets every few seconds says it where notifications don't come (network file systems, files behind
symbolic links, exhausted inotify limits). An editor that is half-way through a save, or a ConfigMap that
is being swapped, changes again within `settle` seconds: nothing is read before that has passed, because
the first half of a policy may well be a valid policy with half of its guards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import watchfiles

Fingerprint = tuple[tuple[str, ...], ...]

SUFFIXES = frozenset({".yaml", ".yml"})


def policy_files(folder: Path) -> list[Path]:
    """The policy files right under `folder`, sorted, without hidden ones; `folder` itself where it is a file.

    Raises `OSError` where it can't be read.
    """
    if folder.is_file():
        return [folder]
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )


def fingerprint(folders: Sequence[Path]) -> Fingerprint:
    """Differs when a policy file was added, removed, replaced, pointed elsewhere or written to."""
    marks: list[tuple[str, ...]] = []
    for folder in folders:
        try:
            files = policy_files(folder)
        except OSError as error:
            marks.append((str(folder), type(error).__name__))
            continue
        for path in files:
            try:
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
                marks.append((str(path), str(path.resolve()), *map(str, stamp)))
            except OSError as error:
                marks.append((str(path), type(error).__name__))
    return tuple(marks)


async def settled_changes(
    folders: Sequence[Path],
    seen: Callable[[], Fingerprint],
    *,
    poll: float,
    settle: float,
) -> AsyncIterator[None]:
    """Yields whenever the files differ from `seen()` and have not changed for `settle` seconds.

    poll: seconds between looks where no notification comes.
    """
    async for _ in ticks(folders, poll):
        now = await asyncio.to_thread(fingerprint, folders)
        while now != seen():
            await asyncio.sleep(settle)
            before, now = now, await asyncio.to_thread(fingerprint, folders)
            if now == before:
                yield
                break


async def ticks(folders: Sequence[Path], poll: float) -> AsyncIterator[None]:
    """One at once, then one per notification and at least one in `poll` seconds."""
    yield
    while True:
        try:
            watched = [folder for folder in folders if folder.exists()]
            async for _ in watchfiles.awatch(
                *watched,
                watch_filter=None,
                step=20,
                debounce=100,
                rust_timeout=max(1, int(poll * 1000)),
                yield_on_timeout=True,
                recursive=False,
            ):
                yield
        except (OSError, RuntimeError):
            # No notifications to be had (inotify's limits, a folder that went away): look now and then.
            await asyncio.sleep(poll)
            yield
