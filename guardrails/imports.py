"""Importing a library as if some of what it may use weren't installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """`packages` can't be imported within, unless they have been already.

    For libraries that import a large package where they find it, and do without it otherwise.
    """
    hidden = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: what the import system calls absent
    try:
        yield
    finally:
        for package in hidden:
            del sys.modules[package]
