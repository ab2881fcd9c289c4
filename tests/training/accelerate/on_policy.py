"""PPO and TRPO by their commands, one after the other, in however many processes a launcher starts.

For the test beside this file. `on_policy.py FOLDER NAME` trains into FOLDER/NAME-ppo and FOLDER/NAME-trpo.
"""

from __future__ import annotations

import sys
from pathlib import Path

from training.cli import main


def train(folder: Path, name: str) -> None:
    for method in ("ppo", "trpo"):
        config, run = folder / f"{method}.yaml", folder / f"{name}-{method}"
        if code := main([method, "--config", str(config), "--data", str(folder), "--run", str(run)]):
            sys.exit(code)


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2])
