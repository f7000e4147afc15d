"""What a page shows, as the commands and the Python that give the same."""

import json
import pprint
import shlex
from dataclasses import dataclass

from app.artifacts.schemas import ArtifactView
from app.jobs.schemas import JobView


@dataclass(frozen=True)
class Snippet:
    """Two ways to do one thing, to be copied."""

    name: str  # an id on the page
    title: str
    curl: str
    python: str


def snippets_of(job: JobView, files: list[ArtifactView], server: str, *, with_key: bool) -> list[Snippet]:
    """How to repeat, follow and download a job.

    Args:
        files: that it made.
        server: the service's address, as the reader's browser has it.
        with_key: whether the service asks for one; it is read from KNOWN_API_KEY.
    """
    key = '-H "Authorization: Bearer $KNOWN_API_KEY" ' if with_key else ""
    base = f"{server}{job.urls.self}"
    said = "  # with the key in KNOWN_API_KEY" if with_key else ""
    client = f'from known_core.client import Client\n\nclient = Client("{server}"){said}\n'
    body = json.dumps(job.request, indent=2, ensure_ascii=False)
    found = [
        Snippet(
            "repeat",
            "Start the same job again",
            f"curl -sS {key}-H 'Content-Type: application/json' \\\n  {server}/v1/enhance -d {shlex.quote(body)}",
            f"{client}job = client.enhance(\n{_indented(pprint.pformat(job.request, width=96, sort_dicts=False))}\n)\n"
            'print(job["id"])',
        ),
        Snippet(
            "follow",
            "Follow this job",
            f"curl -sSN {key}-H 'Accept: text/event-stream' \\\n  {base}/events",
            f'{client}for event in client.events("{job.id}"):\n    print(event)',
        ),
    ]
    if job.result is not None:
        chosen = [file for file in files if file.path.startswith((f"{job.result.selected}/", "report."))]
        fetch = [
            f"curl -sS --create-dirs -o {shlex.quote(file.path)} {key}{shlex.quote(server + file.url)}"
            for file in chosen
        ]
        sums = "\n".join(f"{file.sha256}  {file.path}" for file in chosen)
        found.append(
            Snippet(
                "download",
                "Download and verify the result",
                "\n".join([*fetch, f"sha256sum --check - <<'END'\n{sums}\nEND"]),
                f"from pathlib import Path\n\n{client}"
                f'client.download("{job.id}", Path("{job.id}"), only="{job.result.selected}")',
            )
        )
    return found


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
