"""What pip is configured with on this machine, said so that uv understands it."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

# pip's options and what uv calls them. What is set for uv already is not overridden.
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "timeout": "UV_HTTP_TIMEOUT",
    "proxy": "ALL_PROXY",
}


def uv_environment(pip_config: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """What to set for uv so that it looks where pip looks.

    `pip_config` is what `read_pip_settings` found. pip weighs all its indexes equally; uv is told to as well.
    """
    translated = {}
    for option, variable in PIP_TO_UV.items():
        value = pip_config.get(option)
        if value and variable not in environment:
            separator = "," if option == "find-links" else " "
            translated[variable] = separator.join(value.split())
    if "UV_INDEX" in translated:
        translated.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return translated


def read_pip_settings(*pythons: Path) -> dict[str, str]:
    """pip's settings, from its files and PIP_* variables, as told by the first of `pythons` that has a pip.

    Where none has, the variables alone.
    """
    for python in pythons:
        command = [str(python), "-m", "pip", "config", "list"]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        if listed.returncode == 0:
            return parse_pip_settings(listed.stdout)
    prefix = "PIP_"
    variables = {
        name.removeprefix(prefix): value for name, value in os.environ.items() if name.startswith(prefix)
    }
    return {name.lower().replace("_", "-"): value for name, value in variables.items()}


def parse_pip_settings(listed: str) -> dict[str, str]:
    """Read `pip config list`: lines such as `global.find-links='a b'`, in pip's order except as to scope."""
    strength = {"global": 0, "install": 1, ":env:": 2}
    settings: dict[str, tuple[int, str]] = {}
    for line in listed.splitlines():
        key, assigned, value = line.partition("=")
        scope, _, option = key.rpartition(".")
        if not assigned or scope not in strength:
            continue
        if option not in settings or strength[scope] >= settings[option][0]:
            settings[option] = (strength[scope], str(ast.literal_eval(value)))
    return {option: value for option, (_, value) in settings.items()}
