"""How commands show a job, follow it to its end, and say how it ended by their exit status."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from known_core.cli.options import console, interruptible, print_json

if TYPE_CHECKING:
    from known_core.client import Client, Job


def follow(client: "Client", job_id: str, out: Path | None) -> "Job":
    """Show a job to its end, then its report; download what was selected."""
    from known_core.terminal import byte_bars, show_events, show_report

    with interruptible(f"no longer waiting; the job goes on. To come back: known jobs watch {job_id}"):
        show_events(client.events(job_id), console)
        job = client.job(job_id)
        if job.result is None:
            return job
        show_report(job.report(), console)
        if job.result.hub_url:
            where = job.result.pr_url or job.result.hub_url
            console.print(f"published: {where}  commit {job.result.commit}", soft_wrap=True)
        if out is not None:
            with byte_bars(console) as bars:
                bar = bars.add_task("downloading", total=None)
                count = job.download(
                    out, job.result.selected, lambda done, total: bars.update(bar, completed=done, total=total)
                )
            console.print(f"{count} files in {out}, every sha256 as in manifest.json", soft_wrap=True)
        return job


def print_job(job: "Job", as_json: bool, fail: bool = True) -> None:
    """A job in a few words, or as JSON; ends the command with 1 where it, or its publishing, failed."""
    if as_json:
        print_json(job.raw)
    else:
        print(f"{job.id} {job.status}")
        if job.status == "paused":
            print(f"It holds no worker, and its finished stages are kept: known jobs resume {job.id}")
        elif job.pausing:
            print("It pauses as soon as its worker has stopped.")
        if job.result:
            print(f"selected: {job.result.selected}")
        if job.result and job.result.hub_url:
            print(f"published: {job.result.pr_url or job.result.hub_url}")
    unpublished = job.result.publish_error if job.result else None
    if (error := job.error or unpublished) and not as_json:
        console.print(f"[red]{error.code}[/red] {error.message}", soft_wrap=True)
        console.print(error.hint, soft_wrap=True)
        if unpublished:
            console.print(f"The result is safe: known jobs republish {job.id}", soft_wrap=True)
    if fail and (job.status in ("failed", "canceled") or unpublished):
        raise typer.Exit(1)
