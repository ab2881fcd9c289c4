"""How far raters agree: Krippendorff's alpha for names of things, such as which of two replies is better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def alpha(units: Iterable[Sequence[Hashable]]) -> tuple[float | None, int]:
    """Alpha, and over how many units that several raters judged; None where there is none.

    1 is agreement, 0 what raters give who don't look. Source: Krippendorff, Computing Krippendorff's
    alpha-reliability (2011), nominal data: one less the ratio of observed to expected disagreement.
    """
    several = [Counter(values) for values in units if len(values) > 1]
    total: Counter[Hashable] = Counter()
    observed = 0.0
    for counts in several:
        raters = counts.total()
        observed += (raters**2 - sum(count**2 for count in counts.values())) / (raters - 1)
        total.update(counts)
    values = total.total()
    differing = values**2 - sum(count**2 for count in total.values())
    if not several:
        return None, 0
    return (1.0 if not differing else 1 - (values - 1) * observed / differing), len(several)
