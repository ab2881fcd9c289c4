"""What the tables of all nouns share.

A noun's module (`completions.py`, `feedback.py`, …) defines its table on `METADATA` and is named in `NOUNS`;
a migration under `migrations/versions` makes it. Times are seconds since 1970, as `time.time` gives them.

A table that the writer writes to has a primary key that whoever makes the row chooses: writing a row again
changes nothing, or with `info={"again": "replace"}` puts the later row in place of the earlier.
"""

from __future__ import annotations

import importlib

from sqlalchemy import MetaData

NOUNS = (
    "completions",
    "exposures",
    "experiments",
    "definitions",
    "rewards",
    "feedback",
    "comparisons",
    "reviews",
)

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)


def all_tables() -> MetaData:
    """The metadata with every noun's tables in it."""
    for noun in NOUNS:
        importlib.import_module(f"service.store.{noun}")
    return METADATA
