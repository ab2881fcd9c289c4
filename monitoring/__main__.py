"""`python -m monitoring` writes the dashboards and the rules' tests; `--check` says which would change."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitoring.boards.alignment import alignment
from monitoring.boards.engine import engine
from monitoring.boards.experiments import experiments
from monitoring.boards.operations import operations
from monitoring.boards.safety import safety
from monitoring.boards.traffic import traffic
from monitoring.boards.training import training
from monitoring.rule_cases import TESTS, unit_tests

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
BOARDS = (traffic, safety, alignment, experiments, engine, training, operations)


def dashboards() -> dict[str, Dashboard]:
    """All of them, by the name of their file."""
    return {f"{make.__name__}.json": make().build() for make in BOARDS}


def text(dashboard: Dashboard) -> str:
    """What stands in the file."""
    return (
        json.dumps(json.loads(JSONEncoder(sort_keys=True).encode(dashboard)), indent=1, sort_keys=True) + "\n"
    )


def files() -> dict[Path, str]:
    """All that is generated, and what should stand in it."""
    out = {FOLDER / name: text(dashboard) for name, dashboard in dashboards().items()}
    return {**out, TESTS: unit_tests()}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m monitoring", description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = 0
    for file, wanted in files().items():
        if file.exists() and file.read_text(encoding="utf-8") == wanted:
            continue
        stale += 1
        print(f"{'stale' if check else 'written'}: {file.name}")
        if not check:
            file.write_text(wanted, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
