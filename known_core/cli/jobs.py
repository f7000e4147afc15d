"""`known jobs`: look at jobs, follow them, and change them."""

from pathlib import Path
from typing import Annotated

import typer

from known_core.cli.enhance import push_target
from known_core.cli.following import follow, print_job
from known_core.cli.options import DEFAULT_SERVER, ApiKey, AsJson, HubToken, JobId, Server, console, print_json

jobs_app = typer.Typer(help="Look at jobs, follow them and stop them.", no_args_is_help=True)


@jobs_app.command("list")
def jobs_list(
    limit: Annotated[int, typer.Option(min=1, help="at most this many, newest first")] = 20,
    status: Annotated[str | None, typer.Option(help="only jobs in this state")] = None,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        jobs = list(client.jobs(status=status, limit=limit))
    if as_json:
        print_json({"object": "list", "data": [job.raw for job in jobs]})
        return
    for job in jobs:
        phase = f" ({job.phase})" if job.phase else ""
        print(f"{job.id}  {job['created_at']}  {job.status}{phase}")


@jobs_app.command("show")
def jobs_show(job_id: JobId, server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show a job, and its report where there is one."""
    from known_core.client import Client
    from known_core.terminal import show_report

    with Client(server, api_key) as client:
        job = client.job(job_id)
        print_job(job, as_json)
        if job.status == "succeeded" and not as_json:
            show_report(job.report(), console)


@jobs_app.command("watch")
def jobs_watch(
    job_id: JobId,
    out: Annotated[Path | None, typer.Option(help="download the selected candidate here, when it is there")] = None,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Follow a job to its end, from wherever it is. Ctrl-C ends the watching alone."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        print_job(follow(client, job_id, out), as_json)


@jobs_app.command("cancel")
def jobs_cancel(
    job_id: JobId, server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Cancel a job."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        print_job(client.cancel(job_id), as_json, fail=False)


@jobs_app.command("pause")
def jobs_pause(job_id: JobId, server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Stop a job and keep what is finished, until it is resumed."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        print_job(client.pause(job_id), as_json)


@jobs_app.command("resume")
def jobs_resume(
    job_id: JobId, server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Go on with a paused job, after its last finished stage."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        print_job(client.resume(job_id), as_json)


@jobs_app.command("republish")
def jobs_republish(
    job_id: JobId,
    push: Annotated[str | None, typer.Option(help="hub:user/name; default: where the job's request said")] = None,
    candidate: Annotated[str | None, typer.Option(help="such as x4; default: the selected one")] = None,
    public: Annotated[bool, typer.Option("--public", help="with --push: a new repository is not private")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="with --push: open a pull request")] = False,
    token: HubToken = None,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Put a finished job's result on the Hub, again or elsewhere, and wait for it."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        job = client.republish(job_id, push_target(push, public, create_pr), candidate, token=token)
        print_job(job, as_json)


@jobs_app.command("delete")
def jobs_delete(job_id: JobId, server: Server = DEFAULT_SERVER, api_key: ApiKey = None) -> None:
    """Delete a job that has ended, with its log and artifacts."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        client.delete(job_id)
    print(f"{job_id} deleted")


@jobs_app.command("logs")
def jobs_logs(
    job_id: JobId,
    tail: Annotated[int, typer.Option(min=1, max=100_000, help="last lines")] = 1000,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job has ended")] = False,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
) -> None:
    """Print what a job's process printed."""
    from known_core.cli.options import interruptible
    from known_core.client import Client

    with Client(server, api_key) as client, interruptible("no longer following; the job goes on"):
        if not follow:
            print(client.logs(job_id, tail), end="")
            return
        for line in client.follow_logs(job_id, tail):
            print(line, end="", flush=True)


@jobs_app.command("events")
def jobs_events(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job has ended")] = False,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Print what has happened to a job, one event a line."""
    import json

    from known_core.cli.options import interruptible
    from known_core.client import Client

    with Client(server, api_key) as client, interruptible("no longer following; the job goes on"):
        for event in client.events(job_id, follow=follow):
            if as_json:
                print(json.dumps({"id": event.id, "type": event.type, "data": event.data}), flush=True)
            else:
                facts = " ".join(f"{name}={value}" for name, value in event.data.items() if name != "type")
                print(f"{event.at:%Y-%m-%d %H:%M:%S}  {event.type:<14}{facts}", flush=True)


@jobs_app.command("checkpoints")
def jobs_checkpoints(
    job_id: JobId, server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """List the stages of a job that are finished: what it goes on from."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        stages = client.checkpoints(job_id)
    if as_json:
        print_json([stage.raw for stage in stages])
        return
    for stage in stages:
        print(f"{stage.stage:<24}{stage.seconds:>10.1f} s{stage.bytes:>16,} bytes")


@jobs_app.command("files")
def jobs_files(job_id: JobId, server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the files of a job's result, as sha256sum does; --json has addresses to give to others."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        files = client.files(job_id)
    if as_json:
        print_json([file.raw for file in files])
        return
    for file in files:
        print(f"{file.sha256}  {file.path}")


@jobs_app.command("manifest")
def jobs_manifest(job_id: JobId, server: Server = DEFAULT_SERVER, api_key: ApiKey = None) -> None:
    """Print a job's manifest: what was used and made, for `known reproduce`."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        print_json(client.manifest(job_id))


@jobs_app.command("download")
def jobs_download(
    job_id: JobId,
    out: Annotated[Path, typer.Option(help="folder for the files")],
    candidate: Annotated[
        str | None, typer.Option(help="only this one, such as x4, or selected; default: all of them")
    ] = None,
    server: Server = DEFAULT_SERVER,
    api_key: ApiKey = None,
) -> None:
    """Download a job's result and verify every sha256. Goes on where it stopped."""
    from known_core.cli.options import interruptible
    from known_core.client import Client
    from known_core.terminal import byte_bars

    with (
        Client(server, api_key) as client,
        interruptible("interrupted; run it again to go on"),
        byte_bars(console) as bars,
    ):
        if candidate == "selected":
            candidate = client.report(job_id).selected
        bar = bars.add_task("downloading", total=None)
        count = client.download(
            job_id, out, candidate, lambda done, total: bars.update(bar, completed=done, total=total)
        )
    print(f"{count} files in {out}, every sha256 as in manifest.json")
