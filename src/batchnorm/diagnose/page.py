"""The report as a self-contained HTML page: charts by Vega-Lite, rendered to SVG here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from batchnorm.errors import BatchNormError

if TYPE_CHECKING:
    from batchnorm.diagnose.report import ExtraTable, Report

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>batchnorm: {{ report.verdict }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2733; background: #f6f7f9; margin: 0 }
main { max-width: 1000px; margin: 0 auto; padding: 24px }
section { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; padding: 16px 24px; margin: 16px 0 }
h1 { font-size: 24px; margin: 8px 0 } h2 { font-size: 18px; margin: 4px 0 8px }
p.caption, p.data { color: #55606e; margin: 4px 0 12px }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid #eceff2; vertical-align: top }
td.n { text-align: right } code { background: #eef1f4; padding: 1px 4px; border-radius: 4px; font-size: 14px }
.badge { border-radius: 4px; padding: 1px 8px; font-weight: 600; color: #fff; white-space: nowrap }
.error { background: #b3261e } .warning { background: #8a5a00 }
.note { background: #55606e } .fine { background: #1b6e3c }
svg { max-width: 100%; height: auto }
</style></head><body><main>
<h1>{{ report.verdict[0] | upper }}{{ report.verdict[1:] }}
<span class="badge {{ 'fine' if report.ok else 'warning' }}">{{ 'ok' if report.ok else 'needs attention' }}</span></h1>
<p class="data">{{ headline }}</p>
{% for title, header, rows in tables %}
<section><h2>{{ title }}</h2><div class="scroll"><table><tr>{% for h in header %}<th>{{ h }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table></div></section>
{% endfor %}
{% if findings %}<section><h2>Findings</h2><div class="scroll"><table>
<tr><th>code</th><th>layer</th><th>what and why</th><th>fix</th></tr>
{% for code, severity, layers, message, fix in findings %}
<tr><td><span class="badge {{ severity }}">{{ code }}</span></td><td>{{ layers }}</td><td>{{ message }}</td>
<td><code>{{ fix }}</code></td></tr>{% endfor %}</table></div></section>{% endif %}
{% for title, caption, svg in charts %}
<section><h2>{{ title }}</h2><p class="caption">{{ caption }}</p>{{ svg | safe }}</section>
{% endfor %}
<section><h2>Layers</h2><div class="scroll"><table>
<tr>{% for h in layer_header %}<th>{{ h }}</th>{% endfor %}</tr>
{% for row in layer_rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table></div></section>
</main></body></html>
"""
LAYER_HEADER = ["layer", "drift (std)", "+- (std)", "variance factor", "fewest values", "updates"]


def render(report: Report, extra_charts: Sequence[tuple[str, str, Any]], extra_tables: Sequence[ExtraTable]) -> str:
    """The page as text."""
    try:
        import jinja2
        import vl_convert
    except ImportError as error:
        raise BatchNormError("the HTML report needs: pip install 'batchnorm[report]'") from error
    drift = (
        "Drift of each layer",
        "Distance between the stored mean and what the layer receives, root mean square over channels, in stored "
        f"standard deviations; the bar is the sampling error ({report.evidence.samples} samples).",
        _drift_chart(report),
    )
    charts = [
        (title, caption, vl_convert.vegalite_to_svg(chart.to_dict()))
        for title, caption, chart in [*extra_charts, drift]
    ]
    environment = jinja2.Environment(autoescape=True)
    return environment.from_string(TEMPLATE).render(
        report=report,
        headline=report._headline(),
        findings=report.grouped(),
        tables=extra_tables,
        charts=charts,
        layer_header=LAYER_HEADER,
        layer_rows=report.layer_rows(),
    )


def _drift_chart(report: Report) -> Any:
    import altair

    flagged = {finding.layer for finding in report.findings if finding.severity != "note"}
    rows = [
        {
            "layer": name or "(root)",
            "drift": layer.drift,
            "low": max(layer.drift - layer.standard_error, 0),
            "high": layer.drift + layer.standard_error,
            "state": "flagged" if name in flagged else "fine",
        }
        for name, layer in report.layers.items()
        if layer.collected.values is not None and layer.drift == layer.drift
    ]
    colour = altair.Color(
        "state:N", title=None, scale=altair.Scale(domain=["flagged", "fine"], range=["#b3261e", "#1b6e3c"])
    )
    base = altair.Chart(altair.Data(values=rows)).encode(
        y=altair.Y("layer:N", sort=None, title=None, axis=altair.Axis(labelLimit=320))
    )
    bars = base.mark_rule(strokeWidth=2).encode(
        x=altair.X("low:Q", title="drift, stored standard deviations"), x2="high:Q", color=colour
    )
    points = base.mark_circle(size=80).encode(x="drift:Q", color=colour)
    return (bars + points).properties(width=560, height=altair.Step(20))
