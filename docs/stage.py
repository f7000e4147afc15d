"""Gathers the pages of the documentation site in build/docs: ``make docs``.

Beside docs/ these are the README, the changelog, the cards of the hyper-models, and pages of the routes and of the
decisions. A link that leads to a file of the repository is made to lead to its page.
"""

import json
import posixpath
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_PAGES = {  # of the site: in the repository
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "hyper-models/known-v1.md": "known_core/weights/known-v1.md",
    "hyper-models/known-v1.json": "known_core/weights/known-v1.json",
    "hyper-models/known-paper.md": "known_core/weights/known-paper.md",
    "hyper-models/known-paper.json": "known_core/weights/known-paper.json",
}
_DECISIONS = "decisions/index.md"
_LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")


def pages() -> dict[str, Path]:
    """What the site is made of: the name there, and the file here."""
    docs = ROOT / "docs"
    own = {path.relative_to(docs).as_posix(): path for path in sorted(docs.rglob("*")) if path.is_file()}
    return {_name(name): path for name, path in own.items() if path.suffix not in (".py", ".pyc")} | {
        name: ROOT / path for name, path in _PAGES.items()
    }


def _name(own: str) -> str:
    return own.removesuffix(".ipynb") + ".md" if own.endswith(".ipynb") else own


def as_page(notebook: Path) -> str:
    """A notebook's cells, and where the notebook itself is."""
    parts = [f"[This page as a notebook]({notebook.name})"]
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts[:2] = [parts[1].replace("\n", f"\n\n{parts[0]}\n", 1)]
    return "\n\n".join(parts) + "\n"


def relinked(name: str, source: Path, sites: dict[Path, str]) -> str:
    """A page's text, with its links as they are on the site. Raises: ValueError for one that leads out of it."""

    def to_page(link: re.Match[str]) -> str:
        target = (source.parent / link[2]).resolve()
        if target.is_dir():
            target /= "index.md"
        if target not in sites:
            raise ValueError(f"{source.relative_to(ROOT)} links to {link[2]}, which the site does not have")
        return link[1] + posixpath.relpath(sites[target], posixpath.dirname(name) or ".")

    return _LINK.sub(to_page, source.read_text(encoding="utf-8"))


def list_decisions() -> str:
    """A page with the title of each decision."""
    lines = ["# Decisions", "", "Each says what stood against what, what was decided, and what follows.", ""]
    for path in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def describe_routes(api: dict[str, Any]) -> str:
    """OpenAPI as a page: each route with its parameters, its body and its answers."""
    lines = ["# Every route", "", "Written from the OpenAPI document that a service gives at `/openapi.json`.", ""]
    for path, methods in api["paths"].items():
        for method, route in methods.items():
            lines += [
                f"## `{method.upper()} {path}`",
                "",
                f"**{route['summary']}.** {route.get('description', '')}",
                "",
            ]
            if parameters := route.get("parameters"):
                lines += ["| parameter | in | type | |", "|---|---|---|---|"]
                lines += [
                    f"| `{p['name']}`{' (required)' if p.get('required') else ''} | {p['in']} | {_type(p['schema'])} | "
                    f"{_cell(p.get('description', ''))} |"
                    for p in parameters
                ]
                lines += [""]
            for kind, content in route.get("requestBody", {}).get("content", {}).items():
                lines += [f"Body: `{kind}`, {_type(content.get('schema', {}))}", ""]
                for example in content.get("examples", {}).values():
                    if "value" in example:
                        lines += [f"{example.get('summary', 'Example')}:", "", "```json"]
                        lines += [json.dumps(example["value"], indent=2), "```", ""]
            lines += ["| answer | |", "|---|---|"]
            lines += [f"| {status} | {_cell(answer['description'])} |" for status, answer in route["responses"].items()]
            lines += [""]
    return "\n".join(lines)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    bounds = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    choices = ", ".join(f"`{value}`" for value in schema.get("enum", ()))
    default = f"default `{schema['default']}`" if "default" in schema else ""
    return ", ".join(filter(None, (schema.get("type", "any"), choices, *bounds, default)))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    from app.main import create_app
    from app.settings import AppSettings

    target = ROOT / "build" / "docs"
    shutil.rmtree(target, ignore_errors=True)
    found = pages()
    sites = {path: name for name, path in found.items()} | {ROOT / "docs" / "decisions" / "index.md": _DECISIONS}
    for name, path in found.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ipynb":
            (target / name).write_text(as_page(path), encoding="utf-8")
            shutil.copyfile(path, target / name.replace(".md", ".ipynb"))
        elif path.suffix == ".md":
            (target / name).write_text(relinked(name, path, sites), encoding="utf-8")
        else:
            shutil.copyfile(path, target / name)
    with tempfile.TemporaryDirectory() as folder:
        api = create_app(AppSettings(data_dir=Path(folder))).openapi()
    (target / _DECISIONS).write_text(list_decisions(), encoding="utf-8")
    (target / "reference" / "routes.md").write_text(describe_routes(api), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
