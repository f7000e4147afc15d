"""Draws the figures of docs/how-it-works.md from a job's report: ``python docs/figures.py REPORT.json``.

They are those of the job that ``make demo`` runs.
"""

import json
import sys
from pathlib import Path

from known_core.figures import render_svg

NAMES = {"forgetting": "forgetting", "landscape": "landscape", "before_after": "before_after"}  # file: figure


def main(report_file: str) -> None:
    report = json.loads(Path(report_file).read_text(encoding="utf-8"))
    for file, name in NAMES.items():
        (Path(__file__).parent / "images" / f"{file}.svg").write_text(render_svg(report, name), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
