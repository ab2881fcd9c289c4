"""`python -m loadtests`: load a gateway in several ways, report, and fail where a threshold is missed.

Without `--url` it starts `keel serve` as it comes, with a vLLM of its own, on a free loopback port, and ends
it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from loadtests import report
from loadtests.bench.processes import ROOT, BenchError
from loadtests.run import embedded_gateway, keep_to_the_load_core
from loadtests.stages import BY_POLICY, POLICIES, SCALES, Bench, measure, stages
from loadtests.thresholds import THRESHOLDS, changed, judge

NOTES = Path(__file__).with_name("NOTES.md")


def main() -> int:
    """0 when every threshold was met, 1 when one was missed or something could not be measured."""
    args = _arguments()
    try:
        thresholds = changed(THRESHOLDS, args.threshold)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    scale = SCALES[args.scale]
    with contextlib.ExitStack() as stack:
        server = None
        try:
            if args.url is None:
                print("starting the gateway and its vLLM", flush=True)
                server = stack.enter_context(embedded_gateway(args.out))
                keep_to_the_load_core()
            url = args.url or (server.url if server else "")
            bench = Bench(url, args.out, scale, server, tuple(args.policy or POLICIES), args.seed)
            figures = _measure(bench, args.only or stages(scale))
        except BenchError as error:
            print(f"not measured: {error}", file=sys.stderr)
            return 1
    pictures = report.draw(figures, bench.seen, args.out / "pictures")
    judged = judge(figures, thresholds)
    report.write_html(args.out / "report.html", figures, judged, pictures)
    if args.record:
        _record(figures, bench, thresholds)
    for found in judged:
        sign = "met   " if found.met else "MISSED"
        limit = f"{found.threshold.sense} {found.threshold.limit:g}"
        print(f"{sign} {found.threshold.figure} = {found.value:g} ({limit}: {found.threshold.why})")
    print(f"report: {args.out / 'report.html'}")
    return int(any(not found.met for found in judged))


def _measure(bench: Bench, names: Any) -> dict[str, Any]:
    figures: dict[str, Any] = {"when": {}}
    for i, name in enumerate(names, 1):
        print(f"[{i}/{len(names)}] {name}", flush=True)
        figures[name] = measure(bench, name, figures)
        figures["when"][name] = report.today()
        (bench.home / f"{name}.json").write_text(json.dumps(figures[name], indent=1))
    return figures


def _record(figures: dict[str, Any], bench: Bench, thresholds: Any) -> None:
    """Into docs/LOADTESTS.md, beside the stages that were recorded before."""
    kept = ROOT / "docs" / "loadtests" / "figures.json"
    kept.parent.mkdir(exist_ok=True)
    known = json.loads(kept.read_text()) if kept.exists() else {"when": {}}
    by_policy = {stage: {**known.get(stage, {}), **figures[stage]} for stage in BY_POLICY if stage in figures}
    known = {**known, **figures, **by_policy, "when": {**known["when"], **figures["when"]}}
    kept.write_text(json.dumps(known, indent=1) + "\n")
    report.draw(figures, bench.seen, kept.parent)
    page = ROOT / "docs" / "LOADTESTS.md"
    report.write_page(page, known, judge(known, thresholds), NOTES.read_text(), kept.parent)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="short", help="how long to look (default: short)")
    parser.add_argument("--only", action="append", help="just this stage (repeatable)")
    parser.add_argument("--policy", action="append", help=f"for the curves (default: {', '.join(POLICIES)})")
    parser.add_argument("--url", help="a gateway that runs already, in place of one of its own")
    parser.add_argument("--seed", type=int, default=0, help="of what callers say")
    parser.add_argument("--threshold", action="append", default=[], metavar="FIGURE=LIMIT")
    parser.add_argument("--record", action="store_true", help="write docs/LOADTESTS.md")
    parser.add_argument("--out", type=Path, default=ROOT / ".keel" / "loadtests", help="where results go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
