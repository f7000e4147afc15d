"""What a page shows and does, as the commands and the Python that give the same."""

import json
import pprint
import shlex
from dataclasses import dataclass
from urllib.parse import urlencode

from app.artifacts.schemas import ArtifactView
from app.jobs.schemas import JobView

_LOG_LINES = 200


@dataclass(frozen=True)
class Snippet:
    """Two ways to do one thing, to be copied."""

    name: str  # an id on the page
    title: str
    curl: str
    python: str


class Snippets:
    """How to get by oneself what the pages show.

    Args:
        server: the service's address, as the reader's browser has it.
        with_key: whether the service asks for one; it is read from KNOWN_API_KEY.
    """

    def __init__(self, server: str, *, with_key: bool) -> None:
        self._server = server
        self._curl = "curl -sS" + (' -H "Authorization: Bearer $KNOWN_API_KEY"' if with_key else "")
        said = "  # with the key in KNOWN_API_KEY" if with_key else ""
        self._client = f'from known_core.client import Client\n\nclient = Client("{server}"){said}\n'

    def of_list(self, after: str | None, status: str | None) -> Snippet:
        """The jobs of one page of the list, or all of one state."""
        given = {name: value for name, value in (("status", status), ("after", after)) if value}
        query = f"?{urlencode(given)}" if given else ""
        wanted = ", ".join(f'{name}="{value}"' for name, value in given.items())
        listed = f"client.job_page({wanted}).data" if after else f"client.jobs({wanted})"
        return Snippet(
            "list",
            "These jobs",
            f"{self._curl} {shlex.quote(f'{self._server}/v1/jobs{query}')}",
            f"{self._client}for job in {listed}:\n    print(job.id, job.status)",
        )

    def of_job(self, job: JobView, actions: list[str], figures: list[str], files: list[ArtifactView]) -> list[Snippet]:
        """How to repeat a job, look at it, follow it, have its result, and change it.

        Args:
            actions: that are possible now, as the page's buttons are called.
            figures: of its report, by name.
            files: that it made.
        """
        found = [self._repeat(job), self._look(job), self._follow(job)]
        if job.result is not None:
            found += [self._report(job, figures), self._download(job, job.result.selected, files)]
        return found + ([self._change(job, actions)] if actions else [])

    def _repeat(self, job: JobView) -> Snippet:
        body = json.dumps(job.request, indent=2, ensure_ascii=False)
        request = _indented(pprint.pformat(job.request, width=96, sort_dicts=False))
        return Snippet(
            "repeat",
            "Start the same job again",
            f"{self._curl} -H 'Content-Type: application/json' \\\n  {self._server}/v1/enhance -d {shlex.quote(body)}",
            f'{self._client}job = client.enhance(\n{request}\n)\nprint(job["id"])',
        )

    def _look(self, job: JobView) -> Snippet:
        parts = {"": "client.job({id}).raw", f"/logs?tail={_LOG_LINES}": f"client.logs({{id}}, tail={_LOG_LINES})"}
        lines = [f"{self._curl} {shlex.quote(self._at(job, path))}" for path in parts]
        looks = [call.format(id=f'"{job.id}"') for call in parts.values()]
        if job.request.get("webhook"):
            lines.append(f"{self._curl} {shlex.quote(f'{self._server}/v1/webhooks/deliveries?job={job.id}')}")
            looks.append(f'list(client.deliveries("{job.id}"))')
        python = "\n".join(f"print({look})" for look in looks)
        return Snippet("look", "The job as it is, and its log", "\n".join(lines), self._client + python)

    def _follow(self, job: JobView) -> Snippet:
        return Snippet(
            "follow",
            "Follow this job",
            f"{self._curl} -N -H 'Accept: text/event-stream' \\\n  {self._at(job, '/events')}",
            f'{self._client}for event in client.events("{job.id}"):\n    print(event)',
        )

    def _report(self, job: JobView, figures: list[str]) -> Snippet:
        lines = [f"{self._curl} {self._at(job, '/report')}"]
        lines += [f"{self._curl} -o {name}.svg {self._at(job, f'/figures/{name}.svg')}" for name in figures]
        python = f'report = client.report("{job.id}")\nprint(report)'
        python += "".join(f'\nreport.plot("{name}")[0].savefig("{name}.png")' for name in figures)
        return Snippet("report", "The report and its figures", "\n".join(lines), self._client + python)

    def _download(self, job: JobView, selected: str, files: list[ArtifactView]) -> Snippet:
        chosen = [file for file in files if file.path.startswith((f"{selected}/", "report."))]
        lines = [
            f"{self._curl} --create-dirs -o {shlex.quote(file.path)} {shlex.quote(self._server + file.url)}"
            for file in chosen
        ]
        sums = "\n".join(f"{file.sha256}  {file.path}" for file in chosen)
        return Snippet(
            "download",
            "Download and verify the result",
            "\n".join([*lines, f"sha256sum --check - <<'END'\n{sums}\nEND"]),
            f"from pathlib import Path\n\n{self._client}"
            f'client.download("{job.id}", Path("{job.id}"), only="{selected}")',
        )

    def _change(self, job: JobView, actions: list[str]) -> Snippet:
        """One line for each action: the reader takes one of them."""
        lines, calls = [], []
        for action in actions:
            if action == "republish":
                head = """-H 'Content-Type: application/json' -H "X-Hub-Token: $HF_TOKEN" """
                body = """-d '{"hub": {"repo_id": "owner/name"}}'"""
                lines.append(f"{self._curl} {head}\\\n  {self._at(job, '/republish')} {body}")
                calls.append(f'client.republish("{job.id}", "hub:owner/name", token="hf_...")')
            elif action == "delete":
                lines.append(f"{self._curl} -X DELETE {self._at(job)}")
                calls.append(f'client.delete("{job.id}")')
            else:
                lines.append(f"{self._curl} -X POST {self._at(job, f'/{action}')}")
                calls.append(f'client.{action}("{job.id}")')
        return Snippet("change", "Change this job, by one of these", "\n".join(lines), self._client + "\n".join(calls))

    def _at(self, job: JobView, path: str = "") -> str:
        return f"{self._server}{job.urls.self}{path}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
