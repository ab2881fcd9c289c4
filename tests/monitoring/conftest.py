"""The gateway of the service's tests, for these as well."""

from __future__ import annotations

from tests.service.conftest import log_text, serve

__all__ = ["log_text", "serve"]
