"""The documentation site: every page is in it, every link leads somewhere, and nothing is asked of another host."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy, so that nothing is written beside the sources."""
    copy = tmp_path_factory.mktemp("site")
    for name in ("docs", "known_core", "app", "worker", "README.md", "CHANGELOG.md", "zensical.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy / name)
    for command in ([sys.executable, "docs/stage.py"], [sys.executable, "-m", "zensical", "build", "--strict"]):
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return copy / "build" / "site"


def _named(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [name for item in (nav.values() if isinstance(nav, dict) else nav) for name in _named(item)]


def test_every_page_is_in_the_navigation(site: Path) -> None:
    pages = {path.relative_to(site.parent / "docs").as_posix() for path in (site.parent / "docs").rglob("*.md")}
    named = _named(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    assert len(named) == len(set(named))
    assert set(named) == {page for page in pages if not page.startswith("decisions/0")}


def test_every_link_and_image_is_there(site: Path) -> None:
    missing = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links begin at the root of whatever serves it
            continue
        for link in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if not re.match(r"[\w+.-]+:", link) and not (page.parent / link).exists():
                missing.append(f"{page.relative_to(site)}: {link}")
    assert missing == []


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in site.rglob("*.html"))
    assert (
        re.findall(r'<(?:script|img|iframe)[^>]+src="https?:[^"]+|<link[^>]+stylesheet[^>]+href="https?:[^"]+', text)
        == []
    )


def test_every_route_has_its_section(site: Path) -> None:
    text = (site.parent / "docs" / "reference" / "routes.md").read_text(encoding="utf-8")
    assert "## `POST /v1/enhance`" in text
    assert "| `limit` | query | integer, from 1, to 100, default `20` |" in text
