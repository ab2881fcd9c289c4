"""pip's settings reach uv, with pip's order of precedence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.pip_settings import parse_pip_settings, read_pip_settings, uv_environment


def test_the_environment_wins_over_the_commands_section_and_that_over_the_global_one() -> None:
    listed = "\n".join(
        [
            ":env:.find-links='/from/env'",
            "global.find-links='/from/global'",
            "global.index-url='https://mirror.example/simple'",
            "install.index-url='https://install.example/simple'",
            "freeze.timeout='1'",
            "global.extra-index-url='\\nhttps://a.example/simple\\nhttps://b.example/simple'",
        ]
    )
    assert parse_pip_settings(listed) == {
        "find-links": "/from/env",
        "index-url": "https://install.example/simple",
        "extra-index-url": "\nhttps://a.example/simple\nhttps://b.example/simple",
    }


def test_several_values_are_separated_as_uv_wants_them() -> None:
    settings = {
        "find-links": "/a /b",
        "extra-index-url": "\nhttps://a.example\nhttps://b.example",
        "cert": "/c",
    }
    assert uv_environment(settings, {}) == {
        "UV_FIND_LINKS": "/a,/b",
        "UV_INDEX": "https://a.example https://b.example",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "SSL_CERT_FILE": "/c",
    }


def test_what_is_set_for_uv_is_left_alone() -> None:
    settings = {"index-url": "https://mirror.example", "find-links": "/a"}
    assert uv_environment(settings, {"UV_DEFAULT_INDEX": "https://other.example"}) == {"UV_FIND_LINKS": "/a"}


def test_nothing_configured_changes_nothing() -> None:
    assert uv_environment(parse_pip_settings(""), {}) == {}


def test_pips_own_listing_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nfind-links = /one\n    /two\n[install]\nindex-url = https://mirror.example/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_TIMEOUT", "7")
    settings = read_pip_settings(Path(sys.executable))
    assert settings["find-links"].split() == ["/one", "/two"]
    assert settings["index-url"] == "https://mirror.example/simple"
    assert settings["timeout"] == "7"


def test_without_any_pip_its_variables_still_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pip = tmp_path / "python"
    no_pip.write_text("#!/bin/sh\nexit 1\n")
    no_pip.chmod(0o755)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    settings = read_pip_settings(no_pip, no_pip)
    assert settings["find-links"] == "/wheels"
    assert settings["index-url"] == "https://mirror.example/simple"
