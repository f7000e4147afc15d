"""The vendored scripts are those that their README names."""

import re
from pathlib import Path

from known_core.files import sha256_file

VENDOR = Path(__file__).parents[2] / "app" / "dashboard" / "static" / "vendor"


def test_vendored_files_are_those_of_the_readme() -> None:
    named = dict(re.findall(r"^\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|$", (VENDOR / "README.md").read_text(), re.M))
    there = {path.name: sha256_file(path) for path in VENDOR.iterdir() if path.suffix in (".js", ".css")}
    assert named == there
