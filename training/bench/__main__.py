"""`python -m training.bench [--only ppo,rollouts,beside_trl]`: measure, write docs/BENCHMARKS-TRAINING.md.

What was measured earlier is kept in the home folder, so that `--only` replaces its own rows and no others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from training.bench import measures, report
from training.bench.workers import ROOT, BenchError

_MEASURES: dict[str, Callable[[measures.Plan], measures.Figures]] = {
    "ppo": measures.ppo,
    "rollouts": measures.rollouts,
    "beside_trl": measures.beside_trl,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-training", description=__doc__)
    parser.add_argument("--only", default=",".join(_MEASURES), help="some of " + ", ".join(_MEASURES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU: cuda")
    parser.add_argument("--peer", type=Path, help="a Python with TRL 1.12 (default: one is made)")
    parser.add_argument("--home", type=Path, default=ROOT / ".keel" / "bench-training")
    parser.add_argument("--out", type=Path, help="the page (default: in docs)")
    arguments = parser.parse_args()
    home: Path = arguments.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    plan = measures.Plan(home, arguments.rounds, arguments.device, arguments.peer)
    file = home / f"figures-{arguments.device}.json"
    figures = json.loads(file.read_text()) if file.exists() else {}
    began = time.monotonic()
    try:
        for name in arguments.only.split(","):
            print(f"{name} …", flush=True)
            figures[name] = _MEASURES[name](plan)
            file.write_text(json.dumps(figures, indent=1))
    except BenchError as error:
        print(f"bench-training: {error}", file=sys.stderr)
        return 1
    page = "BENCHMARKS-TRAINING.md" if arguments.device == "cpu" else "BENCHMARKS-TRAINING-GPU.md"
    out: Path = arguments.out or ROOT / "docs" / page
    report.write(out, figures, arguments.device)
    print(f"{out}: written after {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
