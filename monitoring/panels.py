"""The few kinds of panel that the dashboards are made of, and how a dashboard is laid out.

Rates are over `$__rate_interval`, which Grafana makes four scrape intervals at the least, so that they hold
for any of them. A duration is shown as quantiles of its histogram, with the mean beside them where the
sum is what costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat_model
from grafana_foundation_sdk.models import prometheus as query_model

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
MODELS = 'model=~"$model",instance=~"$instance"'
OPS = 'gen_ai_request_model=~"$model",instance=~"$instance"'
HERE = 'instance=~"$instance"'
RATE = "[$__rate_interval]"
QUANTILES = (0.5, 0.95, 0.99)

AnyPanel = Builder[model.Panel]


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression, and how its series are called."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Row:
    """A titled row of panels; panels flow to the next line where they don't fit."""

    title: str
    panels: Sequence[AnyPanel]


def rate(metric: str, where: str, by: str = "") -> str:
    """Events a second, summed up by labels."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{where}}}{RATE}))"


def ratio(part: str, whole: str) -> str:
    """A share; nothing where there is nothing to share, in place of NaN."""
    return f"({part}) / ({whole} > 0)"


def shares(metric: str, where: str, of: str, by: str) -> str:
    """Of the events of each `of`, the share that each `by` has; both are labels."""
    whole = rate(metric, where, of)
    return f"{rate(metric, where, f'{of}, {by}')} / on ({of}) group_left () ({whole} > 0)"


def quantile(q: float, metric: str, where: str, by: str = "") -> str:
    """A quantile of a histogram, of all its series together or by labels."""
    labels = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{where}}}{RATE})))"


def quantiles(metric: str, where: str) -> list[Query]:
    """The median, the 95th and the 99th."""
    return [Query(quantile(q, metric, where), f"p{q * 100:g}") for q in QUANTILES]


def mean(metric: str, where: str, by: str = "") -> str:
    """The mean of what a histogram observed."""
    return ratio(rate(f"{metric}_sum", where, by), rate(f"{metric}_count", where, by))


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stack: bool = False,
    lowest: float | None = 0,
    limit: float | None = None,
) -> AnyPanel:
    """Lines over time; `limit` draws one where an alert begins."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .height(8)
        .span(width)
        .line_width(1)
        .fill_opacity(25 if stack else 8)
        .show_points(shared.VisibilityMode.NEVER)
        .span_nulls(False)
        .legend(
            common.VizLegendOptions()
            .display_mode(shared.LegendDisplayMode.LIST)
            .placement(shared.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(shared.TooltipDisplayMode.MULTI))
    )
    if lowest is not None:
        panel.min(lowest)
    if stack:
        panel.stacking(common.StackingConfig().mode(shared.StackingMode.NORMAL).group("A"))
    if limit is not None:
        panel.thresholds(_steps((None, "transparent"), (limit, "red")))
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(shared.GraphTresholdsStyleMode.DASHED)
        )
    return _with(panel, queries)


def events(
    title: str,
    description: str,
    metric: str,
    where: str,
    by: str,
    *,
    unit: str = "ops",
    width: int = 8,
) -> AnyPanel:
    """Events a second by labels, one upon the other; the labels' values are the legend."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return graph(title, description, unit, Query(rate(metric, where, by), legend), width=width, stack=True)


def number(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    width: int = 4,
    steps: Sequence[tuple[float | None, str]] = ((None, "green"),),
    decimals: int | None = None,
) -> AnyPanel:
    """The newest value, coloured by where it stands."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .height(4)
        .span(width)
        .graph_mode(shared.BigValueGraphMode.AREA)
        .color_mode(shared.BigValueColorMode.VALUE)
        .thresholds(_steps(*steps))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if decimals is not None:
        panel.decimals(decimals)
    return _with(panel, (query,))


def heat(title: str, description: str, unit: str, metric: str, where: str, *, width: int = 12) -> AnyPanel:
    """A histogram's distribution over time."""
    target = _target(Query(f"sum by (le) (increase({metric}_bucket{{{where}}}{RATE}))", "{{le}}"), "A")
    target.format(query_model.PromQueryFormat.HEATMAP)
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(8)
        .span(width)
        .calculate(False)
        .cell_gap(1)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heat_model.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .steps(64)
            .reverse(False)
            .exponent(0.5)
            .fill("dark-orange")
        )
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .with_target(target)
    )


def listing(title: str, description: str, expr: str, *, width: int = 12) -> AnyPanel:
    """The labels of an info metric as a table."""
    target = _target(Query(expr, ""), "A").format(query_model.PromQueryFormat.TABLE).instant()
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit("none")
        .height(8)
        .span(width)
        .with_target(target)
        .with_transformation(
            model.DataTransformerConfig(
                id_val="organize", options={"excludeByName": {"Time": True, "__name__": True, "job": True}}
            )
        )
    )


def board(
    uid: str, title: str, description: str, rows: Sequence[Row], variables: Sequence[tuple[str, str, str]]
) -> dashboard.Dashboard:
    """A dashboard. `variables` are (name, metric, label): all values of a label, several at once."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["keel"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Keel")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["keel"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for name, metric, label in variables:
        made.with_variable(
            dashboard.QueryVariable(name)
            .label(name.replace("_", " ").capitalize())
            .datasource(SOURCE)
            .query(f"label_values({metric}, {label})")
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(model.VariableOption(text="All", value="$__all"))
        )
    number_of = 100  # the rows are numbered below
    top = 0
    for place_of, row in enumerate(rows, 1):
        made.with_row(dashboard.Row(row.title).id(place_of).grid_pos(model.GridPos(h=1, w=WIDTH, x=0, y=top)))
        top += 1
        left = tallest = 0
        for panel in row.panels:
            built = panel.build()
            place = built.grid_pos
            if place is None:
                raise ValueError(f"{title}: the panel {built.title!r} has no size")
            if left + place.w > WIDTH:
                left, top, tallest = 0, top + tallest, 0
            number_of += 1
            built.id_val = number_of
            built.grid_pos = model.GridPos(h=place.h, w=place.w, x=left, y=top)
            left, tallest = left + place.w, max(tallest, place.h)
            made.with_panel(_Built(built))
        top += tallest
    return made


class _Built(Builder[model.Panel]):
    """A panel that is built already, placed where it belongs."""

    def __init__(self, panel: model.Panel) -> None:
        self._panel = panel

    def build(self) -> model.Panel:
        return self._panel


def _with(panel: timeseries.Panel | stat.Panel, queries: Sequence[Query]) -> AnyPanel:
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_target(query, letter))
    return panel


def _target(query: Query, letter: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(letter).datasource(SOURCE)
    return target.legend_format(query.legend) if query.legend else target


def _steps(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=value, color=color) for value, color in steps])
    )
