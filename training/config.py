"""The frozen base of every method's config: from YAML with errors that name the place, and back to YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from training.errors import ConfigError


class Config(BaseModel):
    """Immutable, strict about unknown keys: a mistyped option is an error, never silently a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file and apply `KEY=VALUE` overrides; raises ConfigError with the file and the key.

        A key may be dotted (`data.held_out=0`, `data.sources.0.path=mine.jsonl`); the value is YAML.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: expected a mapping of options, found {type(content).__name__}")
        for override in overrides:
            _override(content, override)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors()
            )
            raise ConfigError(f"{path}: {problems}") from error

    def to_yaml(self) -> str:
        """Every option with its value, as `load` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: write KEY=VALUE, such as learning_rate=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from error
    *path, last = key.split(".")
    place: Any = content
    for step in path:
        if isinstance(place, dict) and place.get(step) is None:
            place[step] = {}  # a section that the file leaves to its defaults
        place = _entry(place, step, override)
    if isinstance(place, dict):
        place[last] = value
    else:
        _entry(place, last, override)
        place[int(last)] = value


def _entry(place: Any, step: str, override: str) -> Any:
    if isinstance(place, dict):
        return place[step]
    if isinstance(place, list) and step.isdigit() and int(step) < len(place):
        return place[int(step)]
    raise ConfigError(f"--set {override}: there is no {step!r} in the file at this place")
