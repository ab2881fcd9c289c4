"""`keel-train NAME --config F`: the arguments that every training method takes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from training.config import Config

C = TypeVar("C", bound=Config)


def run_command(
    method: str,
    description: str,
    config_type: type[C],
    run: Callable[[C, Path, Path], Path],
    argv: Sequence[str],
    check: Callable[[C, Path], str] | None = None,
) -> int:
    """Parse `argv`, then `run(config, data_root, run_path)`, which returns the finished model's folder.

    `--check` prints the whole config, calls `check(config, data_root)` for a report about the data, and
    trains nothing. The run's directory is `runs/NAME` unless `--run` says otherwise.
    """
    parser = argparse.ArgumentParser(prog=f"keel-train {method}", description=description)
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see training/configs")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("KEEL_DATA", "../shared/data")),
        help="the folder that data files are relative to (default: KEEL_DATA, or ../shared/data)",
    )
    parser.add_argument("--run", type=Path, help="the run's directory (default: runs/NAME)")
    parser.add_argument("--check", action="store_true", help="print the config, read the data, train nothing")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another value for an option of the file, such as optimizer.learning_rate=1e-4; may be repeated",
    )
    arguments = parser.parse_args(argv)
    config = config_type.load(arguments.config, arguments.set)
    if arguments.check:
        print(config.to_yaml(), end="")
        if check is not None:
            print(check(config, arguments.data))
        return 0
    final = run(config, arguments.data, arguments.run or Path("runs") / _name(config))
    print(f"finished: {final}")
    return 0


def _name(config: Config) -> str:
    name = getattr(config, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"{type(config).__name__} needs a field `name`, after which its runs are called")
    return name
