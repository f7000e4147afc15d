"""What a job found: as data, as Markdown, and as a page (:mod:`known_core.report.html`)."""

from known_core.report.build import build_report, describe_trajectory
from known_core.report.markdown import render_markdown

__all__ = ["build_report", "describe_trajectory", "render_markdown"]
