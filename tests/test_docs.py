"""The documentation is complete and true: routes, settings, flags, error codes, links, tests and targets it names."""

import ast
import re
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import typer.main

from app.jobs.record import JobStatus
from app.jobs.schemas import EnhanceRequest, EvaluationRequest, ModelInput
from app.main import create_app
from app.settings import AppSettings
from known_core.cli import app as command_line
from known_core.kinds import Kind
from known_core.spec import ForgettingSettings, NowcastSettings
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCES = [path for package in ("app", "known_core", "worker") for path in sorted((ROOT / package).rglob("*.py"))]
RAISED = ("KnownError", "problem")  # what is given a code
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "known_core" / "weights").glob("*.md"))]


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_route_is_described(tmp_path: Path) -> None:
    api = create_app(AppSettings(data_dir=tmp_path))
    routes = {f"{method.upper()} {path}" for path, methods in api.openapi()["paths"].items() for method in methods}
    described = set(re.findall(r"`((?:GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS) /\S*)`", page("api.md")))
    assert described == routes


def test_every_setting_is_described_with_its_default(tmp_path: Path) -> None:
    text = page("operations.md")
    for settings in (AppSettings, WorkerSettings):
        for name, field in settings.model_fields.items():
            row = next((line for line in text.splitlines() if line.startswith(f"| `KNOWN_{name.upper()}` |")), "")
            default = row.split("|")[2] if row else ""
            value = field.get_default(call_default_factory=True, validated_data={"data_dir": tmp_path})
            assert str(value) in default, f"KNOWN_{name.upper()} with its default {value}"
    read = {name for path in SOURCES for name in re.findall(r'"(KNOWN_[A-Z_]+)"', path.read_text())}
    assert [name for name in read if f"`{name}`" not in text] == []


def commands(command: Any, path: str) -> "list[tuple[str, click.Command]]":
    if hasattr(command, "commands"):
        return [found for name, child in command.commands.items() for found in commands(child, f"{path} {name}")]
    return [(path, command)]


def test_every_command_and_flag_is_described() -> None:
    sections = dict(re.findall(r"^## (known .*)\n((?:(?!## ).*\n?)*)", page("cli.md"), flags=re.MULTILINE))
    found = commands(typer.main.get_command(command_line), "known")
    assert set(sections) == {path for path, _ in found}
    for path, command in found:
        flags = {flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")}
        described = set(re.findall(r"`(--[a-z-]+)`", sections[path]))
        assert described - {"--wait", "--config", "--out"} <= flags, path
        assert flags - {"--help"} <= described, path


def test_every_field_of_a_request_is_described() -> None:
    guide, api = page("guide.md"), page("api.md")
    for name in (*EnhanceRequest.model_fields, *ModelInput.model_fields):
        assert f'"{name}"' in api, name
    for settings in (ForgettingSettings, NowcastSettings, EvaluationRequest):
        for name in settings.model_fields:
            assert f"| `{name}` |" in guide, name
            assert f'"{name}"' in api, name
    for status in JobStatus:
        assert f"`{status}`" in api
    assert set(get_args(Kind)) == {"conv", "fc", "bias"}


def error_codes() -> set[str]:
    """Codes given to KnownError in the source, directly, through a module's own helper, or by a subclass."""
    codes = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in (*RAISED, "TooMany", "_bad", "__init__") and isinstance(node.args[0].value, str):
                    codes.add(node.args[0].value)
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "attr", "") == "code":
                assert isinstance(node.value, ast.Constant | ast.Name)
                if isinstance(node.value, ast.Constant):
                    codes.add(str(node.value.value))
    return codes


def test_every_error_code_is_described() -> None:
    described = re.findall(r"^\| `([a-z_]+)` \|", page("errors.md"), flags=re.MULTILINE)
    assert len(described) == len(set(described))
    worker_s = {"worker_died", "job_canceled"}  # written into the record by the claim; what a client waited for
    http_s = {
        "request_invalid",
        "request_too_large",
        "range_not_satisfiable",
        "json_invalid",
        "not_found",
        "method_not_allowed",
        "store_unavailable",
    }  # made by app.problems
    assert set(described) == error_codes() | worker_s | http_s


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_tests_and_files_that_the_docs_name_exist() -> None:
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
            assert (ROOT / file).is_file(), f"{path.name} names {file}"
            assert f"def {test}(" in (ROOT / file).read_text() or not test, f"{path.name} names {file}::{test}"
        for module in re.findall(r"`known_core\.([a-z_.]+)`", text):
            place = ROOT / "known_core" / module.split(".")[0]
            assert place.with_suffix(".py").is_file() or place.is_dir(), f"{path.name}: {module}"


def test_make_targets_that_the_docs_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for path in PAGES:
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
        assert named <= targets, f"{path.name}: {named - targets}"


def test_the_source_names_only_documents_that_exist() -> None:
    for path in SOURCES:
        for name in re.findall(r"docs/[\w/.-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{path.name} names {name}"
