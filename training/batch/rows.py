"""Many rows through one function, each result kept at once: what was answered is never asked again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import track

from training.batch.backends import BACKENDS, Backend, Function, Opens
from training.files import disk_errors

T = TypeVar("T")
Row = dict[str, Any]
Result = Row | Exception


def map_rows(
    items: Sequence[T],
    function: Function[T] | Opens[T],
    *,
    workers: int = 1,
    backend: Backend = "threads",
    keep: Path | None = None,
    errors: type[Exception] | tuple[type[Exception], ...] = Exception,
    title: str = "working",
) -> list[Result]:
    """`function` of every item, in the items' order; where it raises one of `errors`, that.

    See `iter_rows`, which gives them as they come.
    """
    found: dict[int, Result] = dict(
        iter_rows(items, function, workers=workers, backend=backend, keep=keep, errors=errors, title=title)
    )
    return [found[place] for place in range(len(items))]


def iter_rows(
    items: Sequence[T],
    function: Function[T] | Opens[T],
    *,
    workers: int = 1,
    backend: Backend = "threads",
    keep: Path | None = None,
    errors: type[Exception] | tuple[type[Exception], ...] = Exception,
    title: str = "working",
) -> Iterator[tuple[int, Result]]:
    """Place and result of every item, as they come; those that `keep` has from an earlier run come first.

    function:  gives a row of JSON; or has `open()`, which each worker calls once for the function itself, so
               that a model is loaded once a worker. Processes and Ray pickle it and the items.
    keep:      JSON lines, one for each item that was answered, with its place under "item". When it is used
               again, the items must be the same in the same order; those that failed are tried again.
    errors:    what of the function's failures is a row's own: it is its result, in threads as it is, from
               other processes as a `RowError`. Any other ends the run.

    Raises TrainingError where workers can't be had or their function can't be opened.
    """
    known = {i: row for i, row in read_kept(keep).items() if i < len(items)} if keep is not None else {}
    yield from known.items()
    missing = [i for i in range(len(items)) if i not in known]
    if not missing:
        return
    caught = errors if isinstance(errors, tuple) else (errors,)
    arriving: Iterable[tuple[int, Result]] = BACKENDS[backend](
        [(i, items[i]) for i in missing], function, workers, caught
    )
    if keep is not None:
        arriving = track(arriving, title, total=len(missing))
    for place, result in arriving:
        if keep is not None and not isinstance(result, Exception):
            with disk_errors(keep), keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"item": place, **result}, ensure_ascii=False) + "\n")
        yield place, result


def read_kept(path: Path) -> dict[int, Row]:
    """The rows in `path` by item; a last line that was cut short is dropped from the file."""
    if not path.is_file():
        return {}
    found: dict[int, Row] = {}
    good = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
            found[row.pop("item")] = row
        except (ValueError, KeyError, AttributeError):
            break
        if not line.endswith(b"\n"):
            break
        good += len(line)
    with path.open("r+b") as file:
        file.truncate(good)
    return found
