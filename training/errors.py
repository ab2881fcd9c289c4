"""The errors of the training side. Each message says what is wrong, where, and what to do."""

from __future__ import annotations

from pathlib import Path


class TrainingError(Exception):
    """A run that cannot start or go on."""


class ConfigError(TrainingError):
    """A config file that is missing, malformed or contradicts itself."""


class DataError(TrainingError):
    """A data file, or one row of it, that cannot be trained on."""

    def __init__(self, path: Path, line: int | None, problem: str) -> None:
        where = f"{path}:{line}" if line is not None else str(path)
        super().__init__(f"{where}: {problem}")
        self.path = path
        self.line = line


class PublishError(TrainingError):
    """A checkpoint that does not deserve to be published."""
