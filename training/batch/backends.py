"""Where rows are worked on: threads of this process, processes of this machine, or Ray Data.

A backend takes (place, item) pairs and gives (place, result) pairs in the order in which they are done.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from multiprocessing import get_context
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

from training.errors import TrainingError

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
Backend = Literal["threads", "processes", "ray"]
Result = dict[str, Any] | Exception
Placed = tuple[int, Result]
Function = Callable[[T], dict[str, Any]]
Errors = tuple[type[Exception], ...]

_PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux's prctl(2)
_AHEAD = 4  # rows a worker that are handed over before they are due: no worker waits, memory stays small
_BLOCK = 16  # rows that Ray takes at once; so many are lost at most when it is killed


class RowError(TrainingError):
    """A row that failed in another process: the exception's name and what it said."""


@runtime_checkable
class Opens(Protocol[T_contra]):
    """Work that needs something loaded first: `open` is called once in each worker."""

    def open(self) -> Callable[[T_contra], dict[str, Any]]:
        """The function for the rows."""
        ...


def threads(
    items: Sequence[tuple[int, T]], function: Function[T] | Opens[T], workers: int, errors: Errors
) -> Iterator[Placed]:
    """For work that waits: for a server, for a disk."""
    ready = function.open() if isinstance(function, Opens) else function

    def one(item: tuple[int, T]) -> Placed:
        place, value = item
        try:
            return place, ready(value)
        except errors as error:
            return place, error

    with ThreadPoolExecutor(workers) as pool:
        yield from _as_they_come(pool, one, items, workers)


def processes(
    items: Sequence[tuple[int, T]], function: Function[T] | Opens[T], workers: int, errors: Errors
) -> Iterator[Placed]:
    """For work that computes. Workers end with this process, however it ends."""
    work = _pickled(function, errors)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(work,))
    try:
        yield from _as_they_come(pool, _one_here, items, workers)
    except BrokenExecutor as error:
        raise TrainingError(
            "a worker process died, or could not open its work; what it printed says why"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def on_ray(
    items: Sequence[tuple[int, T]], function: Function[T] | Opens[T], workers: int, errors: Errors
) -> Iterator[Placed]:
    """Ray Data: on the cluster that RAY_ADDRESS names, or on a Ray of this machine that ends with the run."""
    work = _pickled(function, errors)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
    except ImportError as error:
        raise TrainingError("the backend 'ray' needs ray[data]; `make env-dev` installs it") from error
    ours = not ray.is_initialized()
    if ours:
        cluster = os.environ.get("RAY_ADDRESS")
        local: dict[str, Any] = {} if cluster else {"num_cpus": workers, "include_dashboard": False}
        ray.init(address=cluster, log_to_driver=False, logging_level=logging.ERROR, **local)
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        rows = [{"place": place, "item": pickle.dumps(item)} for place, item in items]
        blocks = max(1, -(-len(rows) // _BLOCK))
        done = ray.data.from_items(rows, override_num_blocks=blocks).map(
            cast(Any, _RayWorker),
            fn_constructor_args=(work,),
            compute=ActorPoolStrategy(size=min(workers, blocks)),
        )
        for row in done.iter_rows():
            yield row["place"], pickle.loads(row["result"])  # noqa: S301 - our own workers' results
    except ray.exceptions.RayError as error:
        raise TrainingError(f"Ray could not do it: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if ours:
            ray.shutdown()


BACKENDS: dict[Backend, Callable[..., Iterator[Placed]]] = {
    "threads": threads,
    "processes": processes,
    "ray": on_ray,
}


def _as_they_come(
    pool: Executor, one: Callable[[tuple[int, T]], Placed], items: Sequence[tuple[int, T]], workers: int
) -> Iterator[Placed]:
    coming = iter(items)
    running: set[Future[Placed]] = set()
    try:
        while True:
            for item in coming:
                running.add(pool.submit(one, item))
                if len(running) >= workers * _AHEAD:
                    break
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            # A failure that ends the run comes last: what was answered beside it is kept first.
            for future in sorted(done, key=lambda one: one.exception() is not None):
                yield future.result()
    finally:
        for future in running:
            future.cancel()


# ---- in the workers --------------------------------------------------------------------------------------


def _pickled(function: Any, errors: Errors) -> bytes:
    try:
        return pickle.dumps((function, errors))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TrainingError(
            f"this work can't be sent to other processes ({error}); use a function of a module, or threads"
        ) from error


class _Worker:
    def __init__(self, work: bytes) -> None:
        function, self._errors = pickle.loads(work)  # noqa: S301 - from the process that started this one
        self._function = function.open() if isinstance(function, Opens) else function

    def __call__(self, place: int, value: Any) -> Placed:
        try:
            return place, self._function(value)
        except self._errors as error:
            return place, RowError(f"{type(error).__name__}: {error}")


class _RayWorker:
    def __init__(self, work: bytes) -> None:
        self._worker = _Worker(work)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        value = pickle.loads(row["item"])  # noqa: S301 - from the process that started this one
        place, result = self._worker(row["place"], value)
        return {"place": place, "result": pickle.dumps(result)}


_here: _Worker


def _begin(work: bytes) -> None:
    global _here
    end_with_parent()
    _here = _Worker(work)


def _one_here(item: tuple[int, Any]) -> Placed:
    return _here(*item)


def end_with_parent() -> None:
    """Have the system end this process when the one that started it is gone, however that ended."""
    ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGTERM)
