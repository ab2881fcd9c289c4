"""The loop's other processes: a training each on a core of its own, and none that outlives the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from training.batch.backends import end_with_parent
from training.loop.config import LoopConfig


def in_parallel(
    work_on: Callable[..., None], config: LoopConfig, work: Path, tasks: Iterable[tuple[object, ...]]
) -> None:
    """`work_on(config, work, *task)` of each, in `config.workers` processes; 1 is this process.

    The first error is raised, once the tasks that had begun are done.
    """
    if config.workers == 1:
        for task in tasks:
            work_on(config, work, *task)
        return
    with ProcessPoolExecutor(config.workers, get_context("spawn"), initializer=end_with_parent) as pool:
        for future in [pool.submit(work_on, config, work, *task) for task in tasks]:
            future.result()
