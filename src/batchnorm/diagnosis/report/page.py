"""The report as one self-contained HTML page: text made here, charts drawn by a script in the page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from batchnorm.diagnosis.report.report import finite
from batchnorm.diagnosis.report.subject import Table, Timeline

if TYPE_CHECKING:
    from batchnorm.diagnosis.report.report import Report

KINDS = {"model": "a live model", "checkpoint": "a checkpoint", "run": "a training run", "source": "source code"}
MOST_ROWS = 400


def render(report: Report, timelines: Sequence[Timeline], tables: Sequence[Table]) -> str:
    """The page as text."""
    page = report.subject.page()
    own = getattr(report.subject, "timelines", list)()
    worst = next((f.severity for f in report.findings if f.severity != "note"), "fine")
    slots = {
        "verdict": escape(report.verdict),
        "state": worst,
        "kind": KINDS[report.subject.kind],
        "headline": escape(_headline(report)),
        "measured": escape(report.subject.measured if report.ok else f"{report.verdict}. {report.subject.measured}"),
        "metric": _metric(page["metric"]),
        "actions": _actions(report),
        "tables": "".join(_table(table) for table in tables),
        "findings": _findings(report),
        "rows": _rows(report),
        "data": _data(report, page, [*timelines, *own]),
        "style": _resource("page.css"),
        "script": _resource("page.js"),
    }
    text = _resource("page.html")
    for name, value in slots.items():
        head, mark, tail = text.partition("{{" + name + "}}")
        text = head + value + tail if mark else text
    return text


def _titles() -> dict[str, str]:
    from batchnorm.diagnosis.catalogue import RULES

    return {rule.code: rule.title for rule in RULES}


def _headline(report: Report) -> str:
    """The first cause in words; how many findings there are stands below."""
    first = next((f for f in report.findings if f.severity != "note"), None)
    said = report.verdict if first is None else _titles().get(first.code, report.verdict)
    return said[:1].upper() + said[1:]


def _resource(name: str) -> str:
    return files("batchnorm.diagnosis.report").joinpath(name).read_text(encoding="utf-8")


def _metric(rows: list[list[Any]]) -> str:
    values = [v for _, v in rows if v is not None and math.isfinite(v)]
    if not rows:
        return ""
    top = max([abs(v) for v in values], default=1.0) or 1.0
    top = 1.0 if top <= 1 and min(values, default=0.0) >= 0 else top
    bars = ""
    for name, value in rows:
        legal = value is not None and math.isfinite(value)
        width = 100 * abs(value or 0.0) / top if legal else 0
        kind = " stored" if name.startswith("stored") else ""
        shown = f"{value:.4g}" if legal else "not finite"
        bars += (
            f'<span class="label">{escape(name)}</span><b>{shown}</b>'
            f'<div class="track{kind}"><span style="width:{width:.1f}%"></span></div>'
        )
    caption = "The same batches under each choice of statistics, everything else in eval mode."
    return f'<section><h2>The metric</h2><p class="caption">{caption}</p><div class="bars">{bars}</div></section>'


# A call, an assignment or a command: what can be copied out of a fix that says more.
CODE = re.compile(r"batchnorm recalibrate .+|(?:with )?[\w.\[\]]+\((?:[^()]|\([^()]*\))*\)|[\w.]+ = [\w.+-]+")


def _fix(fix: str) -> str:
    found = CODE.search(fix)
    code = fix if found is None else found[0]
    copied = f'<div class="fix"><code>{escape(code)}</code><button type="button">Copy</button></div>'
    if found is None:
        return f'<p class="how">{escape(fix)}</p>'
    return copied if code == fix else f'<p class="how">{escape(fix)}</p>{copied}'


def _tried(tried: str) -> str:
    return f"<br>{escape(tried[:1].upper() + tried[1:])}." if tried else ""


def _actions(report: Report) -> str:
    seen: dict[str, str] = {}
    for code, severity, where, message, fix, tried in report.grouped():
        if severity != "note" and fix not in seen and len(seen) < 6:
            seen[fix] = (
                f'<li><p><span class="badge {severity}">{code}</span> <span class="where">{escape(where)}</span><br>'
                f"{escape(message)}.{_tried(tried)}</p>{_fix(fix)}</li>"
            )
    return f'<section><h2>What to do</h2><ol class="actions">{"".join(seen.values())}</ol></section>' if seen else ""


def _table(table: Table) -> str:
    return f"<section><h2>{escape(table.title)}</h2>{_grid(table)}</section>"


def _grid(table: Table) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if index else ''}>{escape(str(value))}</{tag}>" for index, value in enumerate(values)
        )

    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows[:MOST_ROWS])
    more = f"<p class=caption>and {len(table.rows) - MOST_ROWS} more</p>" if len(table.rows) > MOST_ROWS else ""
    more += f"<p class=caption>{escape(table.caption)}</p>" if table.caption else ""
    return f'<div class="scroll"><table><tr>{cells("th", table.header)}</tr>{rows}</table></div>{more}'


def _findings(report: Report) -> str:
    titles = _titles()
    rows = ""
    for code, severity, where, message, fix, tried in report.grouped()[:MOST_ROWS]:
        rows += (
            f'<div class="found"><header><span class="badge {severity}">{code}</span><span class="title">'
            f'{escape(titles.get(code, ""))}</span><span class="where">{escape(where)}</span></header>'
            f"<p>{escape(message)}.{_tried(tried)}</p>{_fix(fix)}</div>"
        )
    body = rows or '<p class="caption">None.</p>'
    return f'<section id="findings"><h2>All findings</h2>{body}</section>'


def _rows(report: Report) -> str:
    return "".join(
        f"<section><details><summary>{escape(table.title[:1].upper() + table.title[1:])}</summary>{_grid(table)}"
        "</details></section>"
        for table in report.subject.tables()
    )


def _data(report: Report, page: dict[str, Any], timelines: Sequence[Timeline]) -> str:
    by_layer: dict[str, list[list[str]]] = {}
    for finding in report.findings:
        said = [finding.code, finding.severity, finding.message]
        by_layer.setdefault(finding.layer or "(root)", []).append(said)
    for layer in page["layers"]:
        says = by_layer.get(layer["name"], [])
        layer["says"], layer["state"] = says, says[0][1] if says else None
    drawn = [{"title": t.title, "caption": t.caption, "lines": t.lines} for t in timelines]
    text = json.dumps(finite({**page, "timelines": drawn}), separators=(",", ":"))
    # A layer may be called anything, also </script>.
    return text.replace("<", "\\u003c")
