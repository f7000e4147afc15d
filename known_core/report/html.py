"""The report as one HTML page: figures inside, no script, nothing from elsewhere."""

import base64
import hashlib
import json
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from known_core.comparison import UNCHANGED
from known_core.figures import CSS, figures_of, render_svg
from known_core.figures.candidates import percent
from known_core.figures.style import plain
from known_core.points import points

POLICY = "default-src 'none'; style-src '{}'; base-uri 'none'; form-action 'none'"  # Content-Security-Policy, level 3
_ROLES = {
    "model": "Base model",
    "base": "Model that the adapter is of",
    "dataset": "Data it was trained on (D_0)",
    "downstream": "Data of the transfer probe",
}


def render_html(report: dict[str, Any]) -> str:
    """The same report gives the same bytes.

    Args:
        report: as ``report.json`` holds it, measured or of a trajectory alone.
    """
    style = _environment().get_template("page.css.jinja").render(figure_css=CSS)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    figures = [
        figure | {"svg": Markup(render_svg(report, figure["name"], standalone=False))}  # noqa: S704 - made by us
        for figure in figures_of(report)
    ]
    return _page().render(
        report=report,
        style=Markup(style),  # noqa: S704
        policy=POLICY.format(f"sha256-{digest}"),
        figures=figures,
        verdict=_verdict(report),
        rows=_rows(report),
        sources=_sources(report),
        settings=_settings(report),
        sample=[json.dumps(example, ensure_ascii=False) for example in report["inputs"].get("sample", [])],
        unchanged=UNCHANGED,
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("known_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = lambda words: plain(words, 400)
    environment.filters["percent"] = percent
    environment.filters["points"] = points
    return environment


def _page() -> Template:
    return _environment().get_template("page.html.jinja")


def _verdict(report: dict[str, Any]) -> str:
    """ "gained", "unproven", "lost" or "unmeasured": of what is delivered."""
    if "transfer" not in report:
        return "unmeasured"
    gain = report["transfer"][report["selected"]]["gain"]
    if gain is None:
        return "unproven"
    return "gained" if gain["low"] > 0 else "lost" if gain["high"] < 0 else "unproven"


def _rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "probe": probe, "own": report["own_task"][name], "delivered": name == report["selected"]}
        for name, probe in report.get("transfer", {}).items()
    ]


def _sources(report: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    for role, source in report["sources"].items():
        hub = source.get("hub") or {}
        where = plain(hub.get("repo_id", "uploaded"), 200)
        parts = [f"{part} {plain(hub[part], 200)}" for part in ("config", "split") if hub.get(part)]
        rows.append({
            "role": _ROLES.get(role, role),
            "where": ", ".join([where, *parts]),
            "commit": hub.get("revision", ""),
            "sha256": source.get("sha256", ""),
        })  # fmt: skip
    return rows


def _settings(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What the job ended with, by its path in a request; what was not set has no row."""
    found = []
    for section, values in report["settings"].items():
        for name, value in values.items() if isinstance(values, dict) else [("", values)]:
            if value is None or value == {}:
                continue
            found.append((f"{section}.{name}" if name else section, json.dumps(value, ensure_ascii=False)))
    return found
