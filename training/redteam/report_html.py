"""The report as one HTML file: works offline, loads nothing, runs no script. Plots are SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from training.evaluate.figures import Figure
from training.redteam.campaign import Attempt
from training.redteam.report import Report, Row

_COLOURS = ("#b4472a", "#1f6f8b", "#6b7d3a", "#7a5195")
_EXAMPLES = 6
_BROKEN = 20  # behaviours in the table of those that broke
_OUTCOMES = {
    "blocked_input": "guards stopped the request",
    "blocked_output": "guards withheld the reply",
    "refused": "the model declined",
    "withstood": "there was a reply, and it does not do what was asked",
    "succeeded": "the reply does what was asked, or gives the secret away",
    "error": "no answer at all; counts for nothing",
}
_LEGEND = """<details><summary>How to read this</summary>
<p>Each attack is a behaviour (something that must not happen) asked for by a strategy. It <b>succeeded</b> if
the first judge says that the reply does what was asked; where a secret could leak or a document could give
orders, if a made-up word came back. The rate is succeeded over all attacks that got an answer or a block.
Rules, the judge where no model was given, lean towards success: their rate is for comparing, and the sheet
(<code>sheet.csv</code>) is for people to settle what is harmful.</p>
<p>Each behaviour has a harmless <b>twin</b> that reads alike and must be answered. The share of twins without
an answer is what safety costs ordinary people; a rate of attacks says little without it. Twins are asked
plainly, so that they have rates by domain and none by strategy.</p>
<p>Brackets and thin lines are 95 % intervals (Wilson). With few attempts they are wide: two rates whose
intervals overlap much may be the same. To send again what succeeded:
<code>keel redteam --replay cases.jsonl --fail-above 0</code>.</p></details>"""
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-top: 1px solid var(--line); padding-top: 1rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--soft) }
svg { max-width: 100%; height: auto } svg text { fill: currentColor; font: 12px system-ui, sans-serif }
details { margin: .4rem 0 } summary { cursor: pointer } pre { white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--soft); padding: .6rem .8rem; border-radius: .3rem; font-size: .85rem; margin: .3rem 0 }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .35em 0 .8em }
.big { font-size: 1.5rem; font-weight: 600 }
.cards { display: flex; gap: 2.5rem; flex-wrap: wrap; margin: 1rem 0 }
"""


def page(report: Report) -> str:
    """The whole page."""
    title = f"Red team: {' and '.join(report.targets)}"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _about(report),
        _summary(report),
        _LEGEND,
    ]
    for grouping, heading in (("strategy", "By strategy"), ("domain", "By domain"), ("family", "By family")):
        rows = report.rows(grouping)
        if rows:
            parts += [
                f"<h2>{heading}</h2>",
                bars(rows, report.targets),
                _figures(rows, grouping, report.targets),
            ]
    parts += [
        _outcomes(report),
        _broken(report),
        _agreement(report),
        _examples(report),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def bars(rows: Sequence[Row], targets: Sequence[str]) -> str:
    """Horizontal bars with their intervals, a group a line."""
    thick, gap, left, wide = 9, 8, 190, 520
    step = thick * len(targets) + gap
    height = step * len(rows) + 24
    size = f"0 0 {left + wide + 60} {height}"
    out = [f"<svg viewBox='{size}' role='img' aria-label='share of attacks that succeeded, by group'>"]
    for tick in range(0, 101, 25):
        x = left + wide * tick / 100
        out.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='0' y2='{height - 18}' stroke='#8885' />")
        out.append(f"<text x='{x:.1f}' y='{height - 4}' text-anchor='middle'>{tick} %</text>")
    for i, row in enumerate(rows):
        y = i * step + 2
        out.append(f"<text x='{left - 8}' y='{y + step / 2}' text-anchor='end'>{escape(row.group)}</text>")
        for j, figure in enumerate(row.rates):
            if figure is not None:
                out += _bar(figure, left, wide, y + j * thick, thick, _COLOURS[j % len(_COLOURS)])
    return "".join([*out, "</svg>", _legend(targets)])


def _bar(figure: Figure, left: float, wide: float, y: float, thick: float, colour: str) -> list[str]:
    end, low, high = (left + wide * x for x in (figure.value, figure.low, figure.high))
    middle = y + thick / 2
    return [
        f"<rect x='{left}' y='{y:.1f}' width='{max(end - left, 1):.1f}' height='{thick - 2}' fill='{colour}'>"
        f"<title>{figure.percent()}, {figure.n} attempts</title></rect>",
        f"<line x1='{low:.1f}' x2='{high:.1f}' y1='{middle:.1f}' y2='{middle:.1f}' stroke='currentColor' />",
    ]


def _legend(targets: Sequence[str]) -> str:
    keys = (
        f"<span class='key' style='background:{_COLOURS[i % len(_COLOURS)]}'></span>{escape(target)}"
        for i, target in enumerate(targets)
    )
    return f"<p>share of attacks that succeeded: {''.join(keys)}; thin lines are 95 % intervals</p>"


def _about(report: Report) -> str:
    told = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in report.about.items())
    return f"<table>{told}<tr><td>seed</td><td>{report.seed}</td></tr></table>"


def _summary(report: Report) -> str:
    cards = []
    for target in report.targets:
        success, refusal = report.success_rate(target), report.over_refusal(target)
        cards.append(
            f"<div><div>{escape(target)}</div><div class='big'>{_percent(success)}</div>of attacks succeeded"
            f"<div class='big'>{_percent(refusal)}</div>harmless twins that got no answer</div>"
        )
    gap = report.difference(report.targets[0], report.targets[1]) if len(report.targets) > 1 else None
    between = ""
    if gap is not None:
        between = (
            f"<p>{escape(report.targets[0])} less {escape(report.targets[1])}, paired over {gap.n} attacks: "
            f"{gap.percent()} of attacks.</p>"
        )
    failed = sum(not attempt.counted for attempt in (*report.attempts, *report.twins))
    lost = f"<p><b>{failed} requests failed</b> and count for nothing.</p>" if failed else ""
    return f"<div class='cards'>{''.join(cards)}</div>{between}{lost}"


def _percent(figure: Figure | None) -> str:
    return "–" if figure is None else figure.percent()


def _figures(rows: Sequence[Row], grouping: str, targets: Sequence[str]) -> str:
    heads = [f"{target}: attacks succeeded" for target in targets]
    twins = any(row.refusals for row in rows)
    heads += [f"{target}: twins unanswered" for target in targets] if twins else []
    counts = ["attacks", "twins"] if twins else ["attacks"]
    body = "".join(
        f"<tr><td>{escape(row.group)}</td>"
        + "".join(f"<td>{_percent(figure)}</td>" for figure in (*row.rates, *row.refusals))
        + f"<td>{_count(row.rates)}</td>{f'<td>{_count(row.refusals)}</td>' if twins else ''}</tr>"
        for row in rows
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in (grouping, *heads, *counts))
    return f"<details open><summary>figures</summary><table><tr>{head}</tr>{body}</table></details>"


def _count(figures: Iterable[Figure | None]) -> int:
    return max((figure.n for figure in figures if figure), default=0)


def _outcomes(report: Report) -> str:
    columns = [(target, twins) for target in report.targets for twins in (False, True)]
    head = "".join(
        f"<th>{escape(target)}: {'twins' if twins else 'attacks'}</th>" for target, twins in columns
    )
    rows = "".join(
        f"<tr><td>{kind.replace('_', ', ')}</td>"
        + "".join(
            f"<td>{report.outcomes(target, twins=twins).get(kind, 0)}</td>" for target, twins in columns
        )
        + f"<td>{meaning}</td></tr>"
        for kind, meaning in _OUTCOMES.items()
    )
    return f"<h2>What became of it all</h2><table><tr><th></th>{head}<th></th></tr>{rows}</table>"


def _broken(report: Report) -> str:
    """The behaviours that broke most often, with what they were broken by."""
    by_behavior: dict[tuple[str, str], list[Attempt]] = {}
    for attempt in report.attempts:
        if attempt.counted:
            by_behavior.setdefault((attempt.target, attempt.behavior), []).append(attempt)
    ranked = sorted(by_behavior.items(), key=lambda item: -sum(a.succeeded for a in item[1]))
    rows = []
    for (target, behavior), attempts in ranked[:_BROKEN]:
        by = sorted({attempt.strategy for attempt in attempts if attempt.succeeded})
        if by:
            cells = (behavior, attempts[0].domain, target, f"{len(by)} of {len(attempts)}", ", ".join(by))
            rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    if not rows:
        return "<h2>Behaviours that broke</h2><p>None: no attack succeeded.</p>"
    head = "<tr><th>behaviour</th><th>domain</th><th>target</th><th>attacks</th><th>broken by</th></tr>"
    return f"<h2>Behaviours that broke most often</h2><table>{head}{''.join(rows)}</table>"


def _agreement(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{escape(one)} and {escape(other)}</td>"
        f"<td>{'–' if k is None else f'{k:.2f}'}</td><td>{n}</td></tr>"
        for (one, other), (k, n) in report.agreement().items()
    )
    if not rows:
        return ""
    return (
        f"<h2>Judges</h2><table><tr><th>judges</th><th>Cohen's kappa</th><th>replies</th></tr>{rows}</table>"
    )


def _examples(report: Report) -> str:
    groups = [
        ("Attacks that succeeded", [a for a in report.attempts if a.succeeded]),
        ("Harmless twins that got no answer", [a for a in report.twins if a.counted and not a.answered]),
    ]
    return "".join(
        f"<h2>{heading}</h2><p>{min(_EXAMPLES, len(attempts))} of {len(attempts)}; report.json has all.</p>"
        f"{''.join(map(_example, spread(attempts, _EXAMPLES)))}"
        for heading, attempts in groups
        if attempts
    )


def spread(attempts: Iterable[Attempt], count: int) -> list[Attempt]:
    """At most `count`, of as many strategies as there are."""
    by_strategy: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        by_strategy.setdefault(attempt.strategy, []).append(attempt)
    ranked = [group[i] for i in range(count) for group in by_strategy.values() if i < len(group)]
    return ranked[:count]


def _example(attempt: Attempt) -> str:
    told = f"{attempt.target} · {attempt.behavior} · {attempt.strategy} · {attempt.outcome}"
    found = f"<p>found by guards: {escape(', '.join(attempt.findings))}</p>" if attempt.findings else ""
    judged = ", ".join(f"{who}: {'success' if word else 'none'}" for who, word in attempt.verdicts.items())
    said = f"<p>asked</p><pre>{escape(attempt.prompt[:2000])}</pre>"
    reply = f"<p>replied</p><pre>{escape(attempt.reply)}</pre>" if attempt.reply else ""
    verdicts = f"<p>judged {escape(judged)}</p>" if judged else ""
    return f"<details><summary>{escape(told)}</summary>{said}{reply}{found}{verdicts}</details>"
