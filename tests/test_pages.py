"""The code of the documentation: every block says what it is, and is run (tests/test_pages_run.py) or says why not."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from known_core.cli import app as command_line

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "known_core" / "weights").glob("*.md")),
]
LANGUAGES = {"sh", "python", "json", "yaml", "toml", "text"}
_FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+?) -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
_WHOLE_PAGE = re.compile(r"^<!-- no block of this page is run: (?P<why>[^\n]+?) -->$", re.M)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    why_not: str | None  # the reason why it is not run


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    whole = _WHOLE_PAGE.search(text)
    why_not = whole["why"] if whole else None
    return [Block(found["language"], found["code"], found["why"] or why_not) for found in _FENCE.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert len(re.findall(r"^```", text, re.M)) == 2 * len(blocks(page))
    reasons = re.findall(r"<!-- not run.*", text)
    assert len(reasons) == sum(found["why"] is not None for found in _FENCE.finditer(text)), reasons
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.code)
        if block.language == "json" and block.why_not is None:
            json.loads(block.code)


def commands(code: str) -> Iterator[list[str]]:
    """The `known ...` lines of a shell block, as words."""
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith("known "):
            words = shlex.split(line, comments=True)[1:]
            ends = [at for at, word in enumerate(words) if word in ("|", ">", "&&", ";", "&")]
            yield words[: min(ends, default=len(words))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one_that_known_takes(page: Path) -> None:
    for block in blocks(page):
        for words in commands(block.code) if block.language == "sh" else ():
            command: Any = typer.main.get_command(command_line)
            arguments = list(words)
            while hasattr(command, "commands") and arguments:
                assert arguments[0] in command.commands, f"{page.name}: known {' '.join(words)}"
                command = command.commands[arguments.pop(0)]
            parameters = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
            flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
            assert flags - {"--help"} <= parameters, f"{page.name}: known {' '.join(words)}"
