"""Curves of classifiers as SVG, drawn by hand: three pictures, each with a line for every named set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from training.evaluate.metrics import Floats

SIZE, EDGE = 360, 44
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")
Scored = tuple[Floats, Floats]
"""Truth (0 or 1) and scores of a set's rows."""


def pictures(sets: Mapping[str, Scored]) -> dict[str, str]:
    """`roc`, `precision_recall` and `reliability`, as SVG documents."""
    roc, recall, reliable = {}, {}, {}
    for name, (truth, scores) in sets.items():
        false_rate, true_rate, _ = roc_curve(truth, scores)
        roc[name] = list(zip(false_rate, true_rate, strict=True))
        precision, found, _ = precision_recall_curve(truth, scores)
        recall[name] = list(zip(found, precision, strict=True))
        reliable[name] = list(_bins(truth, scores))
    return {
        "roc": _plot("ROC", "false positives", "recall", roc),
        "precision_recall": _plot("Precision and recall", "recall", "precision", recall),
        "reliability": _plot("Reliability", "score", "share that has the label", reliable),
    }


def _bins(truth: Floats, scores: Floats, bins: int = 8) -> Iterable[tuple[float, float]]:
    """Mean score and share of positives, in bins of equal width that hold at least ten rows."""
    places = np.minimum((scores * bins).astype(int), bins - 1)
    for place in range(bins):
        rows = places == place
        if rows.sum() >= 10:
            yield float(scores[rows].mean()), float(truth[rows].mean())


def _plot(title: str, across: str, up: str, lines: Mapping[str, list[tuple[float, float]]]) -> str:
    def at(x: float, y: float) -> str:
        return f"{EDGE + x * SIZE:.1f},{EDGE + (1 - y) * SIZE:.1f}"

    width, height = SIZE + 2 * EDGE + 150, SIZE + 2 * EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{EDGE}" y="24" font-size="15">{escape(title)}</text>',
        f'<path d="M{at(0, 1)} L{at(0, 0)} L{at(1, 0)}" fill="none" stroke="black"/>',
        f'<path d="M{at(0, 0)} L{at(1, 1)}" stroke="#cccccc" stroke-dasharray="4"/>',
        f'<text x="{EDGE + SIZE / 2}" y="{height - 10}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(14 {EDGE + SIZE / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(up)}</text>",
    ]
    for tick in (0.0, 0.5, 1.0):
        x, y = at(tick, 0).split(",")[0], at(0, tick).split(",")[1]
        parts.append(f'<text x="{x}" y="{EDGE + SIZE + 15}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{EDGE - 6}" y="{y}" text-anchor="end">{tick:g}</text>')
    drawn = {name: points for name, points in lines.items() if points}
    for row, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[row % len(COLOURS)]
        path = " L".join(at(x, y) for x, y in _thinned(points))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(
            f'<text x="{EDGE + SIZE + 12}" y="{EDGE + 18 * row + 10}" fill="{colour}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _thinned(points: list[tuple[float, float]], most: int = 150) -> list[tuple[float, float]]:
    step = max(1, len(points) // most)
    return [*points[::step], points[-1]]
