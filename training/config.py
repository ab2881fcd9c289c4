"""The frozen base of every method's config, and YAML loading with errors that name the place."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from training.errors import ConfigError


class Config(BaseModel):
    """Immutable, strict about unknown keys: a mistyped option is an error, never silently a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a YAML file; raises ConfigError with the file and the offending key."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: expected a mapping of options, found {type(content).__name__}")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors()
            )
            raise ConfigError(f"{path}: {problems}") from error
