"""`python -m loadtests.bench`: measure the gateway and write docs/BENCHMARKS.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from loadtests.bench import report
from loadtests.bench.measures import MEASURES, Plan
from loadtests.bench.processes import ROOT, BenchError


def main() -> int:
    """Run the chosen measurements; 1 when one of them could not be made."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=list(MEASURES), help="measure just this (repeatable)"
    )
    parser.add_argument("--quick", action="store_true", help="two short rounds: does it run? Not for quoting")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "BENCHMARKS.md", help="the page to write")
    args = parser.parse_args()
    home = ROOT / ".keel" / "bench"
    home.mkdir(parents=True, exist_ok=True)
    plan = Plan(home, seconds=2, repeats=2, requests=5_000, tokens=30) if args.quick else Plan(home)
    kept = home / "figures.json"
    figures = json.loads(kept.read_text()) if kept.exists() and not args.quick else {}
    failed = False
    chosen = args.only or list(MEASURES)
    for i, name in enumerate(chosen, 1):
        print(f"[{i}/{len(chosen)}] {name}", flush=True)
        try:
            figures[name] = MEASURES[name](plan)
        except BenchError as error:
            print(f"  not measured: {error}", file=sys.stderr)
            failed = True
        if not args.quick:
            kept.write_text(json.dumps(figures, indent=1))
    if not args.quick:
        notes = Path(__file__).with_name("NOTES.md")
        report.write(args.out, figures, notes.read_text() if notes.exists() else "")
    print("\n".join(report.rows(figures)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
