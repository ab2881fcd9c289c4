"""What every part of a policy file is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, Field(max_length=4_000), AfterValidator(_not_blank)]


class Frozen(BaseModel):
    """Immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Upstream(Frozen):
    """Any server that speaks OpenAI's API. Keys are read from the environment, never from the file."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    model: str
    api_key_env: str | None = None
