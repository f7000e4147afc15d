"""Both clients against the running service, and what they make of its answers."""

import inspect
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from known_core.client import AsyncClient, AsyncJob, Client, Job, Report, errors
from known_core.client.records import JobFields
from known_core.client.requests import sort_settings
from known_core.errors import KnownError
from known_core.stack import Stack
from tests.conftest import QUICK, Inputs
from tests.cutting import cutting

ROOT = Path(__file__).parents[2]
FLAT = {**QUICK["forgetting"], **QUICK["evaluation"], "controls": []}


def wanted(inputs: Inputs) -> dict[str, Any]:
    """The quick job, as a person says it."""
    return {
        "model": {"path": inputs.model, "config": inputs.config}, "dataset": inputs.dataset,
        "downstream": str(inputs.downstream), **FLAT,
    }  # fmt: skip


def test_a_job_from_paths_to_files(stack: Stack, inputs: Inputs, tmp_path: Path) -> None:
    with Client(stack.url) as client:
        estimate = client.estimate(**wanted(inputs))
        assert estimate.resolved["task"] == "image-classification"
        job = client.enhance(**wanted(inputs), metadata={"made": "by hand"})
        assert (job.request["forgetting"]["learning_rate"], job.request["evaluation"]["seeds"]) == (1e-3, 3)
        assert job.metadata == {"made": "by hand"}
        job = job.wait(progress=False)
        assert job.status == "succeeded"
        assert job.result is not None
        assert isinstance(job.finished_at, datetime)
        assert job.finished_at.tzinfo is not None
        assert job["result"]["selected"] == job.result.selected
        report = job.report()
        assert report.selected == job.result.selected
        assert set(report.gains) == {"x2", "x4", "x8"}
        assert report.table().row_count == 4
        assert report.conclusion in str(report).replace("\n", " ")
        assert job.download(tmp_path / "out", only="x2") == 5
        assert (tmp_path / "out" / "x2" / "model.safetensors").is_file()
        assert {file.path for file in job.files()} >= {"report.json", "x8/model.safetensors"}
        assert [event.type for event in job.events()][-1] == "status"
        assert job.logs(tail=3).count("\n") <= 3
        assert "".join(job.follow_logs()) == job.logs()
        assert job.checkpoints()[0].bytes > 0


@pytest.mark.slow
def test_the_same_without_blocking(stack: Stack, inputs: Inputs, tmp_path: Path) -> None:
    async def script() -> None:
        async with AsyncClient(stack.url) as client:
            states = [inputs.model] * 5  # of any architecture, without data: the quickest job there is
            assert (await client.estimate(trajectory=states)).resolved
            job = await client.enhance(trajectory=states)
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await anyio.sleep(0.01)
                    ticks += 1

            async with anyio.create_task_group() as group:
                group.start_soon(tick)
                job = await job.wait(progress=False)
                group.cancel_scope.cancel()
            assert ticks > 10  # the event loop was free meanwhile
            assert job.status == "succeeded"
            assert (await job.report()).selected == job.result.selected  # type: ignore[union-attr]
            assert await job.download(tmp_path / "out", only="x2") == 4
            assert [event.type async for event in job.events()][-1] == "status"
            assert "".join([line async for line in job.follow_logs()]) == await job.logs()
            assert job.id in [other.id async for other in client.jobs(limit=5)]
            assert (await client.job_page(limit=1)).data[0].id == job.id
            assert {file.path for file in await job.files()} >= {"report.json"}
            assert (await job.manifest())["content_sha256"]
            assert (await job.checkpoints())[0].bytes > 0
            with pytest.raises(errors.JobEnded):
                await job.cancel()
            upload = await client.upload_info(await client.upload(inputs.downstream))
            assert upload.status == "complete"
            await client.delete_upload(upload.id)
            assert (await client.capabilities()).version
            assert [delivery async for delivery in client.deliveries(job.id)] == []
            assert (await client.webhook_secret()).secret.startswith("whsec_")
            await job.delete()
            with pytest.raises(errors.JobNotFound):
                await job.refresh()

    anyio.run(script)


def test_both_have_the_same_calls() -> None:
    for blocking, awaited in ((Client, AsyncClient), (Job, AsyncJob)):
        mine, other = (
            {name: member for name, member in vars(kind).items() if inspect.isfunction(member) and name[0] != "_"}
            for kind in (blocking, awaited)
        )
        assert mine.keys() == other.keys()
        for name, method in mine.items():
            assert inspect.signature(method).parameters == inspect.signature(other[name]).parameters, name
            assert method.__doc__, name
            assert method.__doc__ == other[name].__doc__


def test_a_wait_ends_in_time_and_the_job_goes_on(client: Client, start_job: Callable[..., str]) -> None:
    job = client.job(start_job(forgetting={"epochs_per_stage": 1000}))
    begun = time.monotonic()
    with pytest.raises(errors.WaitTimeout) as caught:
        job.wait(timeout_s=1.5)
    assert isinstance(caught.value, TimeoutError)
    assert time.monotonic() - begun < 30
    assert not job.refresh().ended
    job.cancel()
    with pytest.raises(errors.JobFailed, match="was canceled") as failed:
        job.wait()
    assert failed.value.job is not None
    assert failed.value.job.status == "canceled"
    assert job.wait(check=False).status == "canceled"


def test_ctrl_c_ends_the_waiting_and_not_the_job(stack: Stack, client: Client, start_job: Callable[..., str]) -> None:
    job_id = start_job(forgetting={"epochs_per_stage": 1000})
    script = (
        f"from known_core.client import Client\nprint('waiting', flush=True)\nClient('{stack.url}').wait('{job_id}')"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        waiting.stdout.readline()
        time.sleep(1)
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    assert waiting.returncode != 0
    assert not client.job(job_id).ended
    client.cancel(job_id)


def test_a_job_that_failed_raises_its_own_code(client: Client, start_job: Callable[..., str]) -> None:
    job = client.job(start_job(forgetting={"learning_rate": 1.0, "epochs_per_stage": 20, "batch_size": 8},
                               limits={"max_gpu_seconds": 1}))  # fmt: skip
    with pytest.raises(errors.JobFailed) as caught:
        job.wait()
    assert caught.value.code in ("limit_reached", "training_diverged")
    assert type(caught.value) is errors.class_of(caught.value.code)


def test_jobs_over_pages(client: Client, start_job: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = [start_job() for _ in range(3)]
    for job_id in made:
        client.cancel(job_id)
    asked: list[str] = []
    client._http.event_hooks["request"].append(lambda request: asked.append(str(request.url)))
    assert [job.id for job in client.jobs(limit=3)] == made[::-1]
    assert len(asked) == 1
    assert [job.id for job in client.jobs()][:3] == made[::-1]


def test_a_create_whose_answer_is_lost_starts_one_job(stack: Stack, client: Client, inputs: Inputs) -> None:
    """The connection breaks after the request has arrived: it is sent again, and is the same job."""
    request = inputs.request(client, stack.url, metadata={"case": "lost answer"})
    before = len(list(client.jobs()))
    with cutting(stack.port, cuts=1, at_most=201, answers=True) as (url, proxy), Client(url) as cut:
        job = cut.enhance(request)
        assert proxy.cuts == 0
    assert len(list(client.jobs())) == before + 1
    assert client.job(job.id).metadata == {"case": "lost answer"}
    assert client.enhance(request, idempotency_key="mine").id == client.enhance(request, idempotency_key="mine").id
    for started in client.jobs(limit=2):
        started.cancel()


def test_problems_are_exceptions_by_code(stack: Stack, client: Client, finished_job: str, inputs: Inputs) -> None:
    with pytest.raises(errors.NotFound) as missing:
        client.job("job_" + "0" * 24)
    assert type(missing.value) is errors.JobNotFound
    assert (missing.value.status, missing.value.code) == (404, "job_not_found")
    assert missing.value.request_id
    with pytest.raises(errors.Conflict, match="job_ended"):
        client.cancel(finished_job)
    with pytest.raises(errors.Invalid) as invalid:
        client.enhance(inputs.request(client, stack.url), learning_rate=float("nan"), seeds=1)
    pointers = {error["pointer"] for error in invalid.value.errors}
    assert pointers == {"/forgetting/learning_rate", "/evaluation/seeds"}
    with pytest.raises(errors.FileMissing, match="hub:user/name"):
        client.enhance(model="no/such/file", dataset="hub:user/data")
    with pytest.raises(errors.OptionInvalid, match="Did you mean epochs_per_stage"):
        client.enhance(model="hub:a/b", dataset="hub:a/b", epochs_per_stages=3)
    with pytest.raises(errors.ServerUnreachable), Client("http://127.0.0.1:9") as nobody:
        nobody.job(finished_job)


def test_every_code_has_an_exception() -> None:
    codes = re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs" / "errors.md").read_text(), flags=re.MULTILINE)
    kinds = set(errors._CODES)
    assert set(errors._CLASSES) == set(codes)
    for code in codes:
        kind = errors.class_of(code)
        assert any(issubclass(kind, parent) for parent in kinds)
        assert issubclass(kind, KnownError)
        name = "".join(part.capitalize() for part in code.split("_"))
        assert getattr(errors, name) is kind
    with pytest.raises(AttributeError):
        errors.NoSuchThing  # noqa: B018


def test_an_exception_survives_another_process() -> None:
    error = errors.problem("rate_limited", "slow down", "wait", status=429, retry_after_s=3.0, retryable=True)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.RateLimited
    assert (str(again), again.retry_after_s, again.retryable) == (str(error), 3.0, True)
    late = pickle.loads(pickle.dumps(errors.WaitTimeout("job_1", 3)))
    assert (type(late), late.code) == (errors.WaitTimeout, "wait_timeout")


def test_a_newer_server_breaks_nothing() -> None:
    """Fields and codes that this client has never heard of."""
    raw = {"id": "job_1", "status": "napping", "mood": {"deep": 1}, "result": {"selected": "x2", "conclusion": "",
           "taste": "sweet"}}  # fmt: skip
    job = JobFields.model_validate(raw)
    assert (job.status, job.ended, job["mood"]["deep"]) == ("napping", False, 1)
    assert job.result is not None
    assert job.result["taste"] == "sweet"
    assert job.raw is raw
    assert errors.class_of("teapot", 404) is errors.NotFound
    answer = httpx.Response(503, text="<html>a proxy's own page</html>", headers={"Retry-After": "7"})
    error = errors.from_answer(answer)
    assert isinstance(error, errors.Unavailable)
    assert (error.code, error.retry_after_s, error.retryable) == ("server_error", 7.0, True)


def test_settings_by_their_own_names() -> None:
    assert sort_settings({"epochs_per_stage": 4, "forgetting": {"rate": 0.4}, "push": "hub:a/b@next", "seeds": 5,
                          "select": "x4", "recurrences": 2, "max_gpu_seconds": 60, "task": "causal-lm"}) == {
        "forgetting": {"rate": 0.4, "epochs_per_stage": 4},
        "output": {"hub": {"repo_id": "a/b", "revision": "next"}},
        "evaluation": {"seeds": 5, "select": "x4"},
        "nowcast": {"recurrences": 2},
        "limits": {"max_gpu_seconds": 60},
        "task": "causal-lm",
    }  # fmt: skip


def test_a_log_is_followed_while_it_grows(stack: Stack, client: Client, start_job: Callable[..., str]) -> None:
    """Lines are appended to the real log while it is followed: each is given once, in order."""
    job_id = start_job(forgetting={"epochs_per_stage": 1000})
    log = stack.logs.parent / "jobs" / job_id / "log.txt"
    while not log.is_file() or not log.read_text():
        time.sleep(0.05)
    lines = [f"line {number} of many\n" for number in range(3000)]

    def write() -> None:
        for begin in range(0, len(lines), 600):
            with log.open("a") as stream:
                stream.writelines(lines[begin : begin + 600])
            time.sleep(0.7)
        client.cancel(job_id)

    writer = threading.Thread(target=write)
    writer.start()
    given = [line for line in client.follow_logs(job_id) if line.startswith("line ")]
    writer.join()
    assert given == lines


@pytest.mark.slow
def test_a_log_is_followed_over_a_restart(stack: Stack, client: Client, start_job: Callable[..., str]) -> None:
    """The command ends with the job, though the API was killed and started again meanwhile."""
    job_id = start_job(forgetting={"epochs_per_stage": 1000})
    log = stack.logs.parent / "jobs" / job_id / "log.txt"
    while not log.is_file() or not log.read_text():
        time.sleep(0.05)
    command = [sys.executable, "-m", "known_core", "jobs", "logs", job_id, "--follow", "--server", stack.url]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert follower.stdout is not None
    assert follower.stdout.readline() == "attempt 1\n"
    os.kill(stack.pids()["api"], signal.SIGKILL)
    with log.open("a") as stream:
        stream.write("meanwhile\n")
    time.sleep(2)
    stack.restart("api")
    stack._wait_until_ready()
    client.cancel(job_id)
    said = follower.communicate(timeout=60)[0]
    assert follower.returncode == 0, said
    assert said.count("meanwhile\n") == 1


def test_a_report_shows_itself(client: Client, finished_job: str) -> None:
    report = client.report(finished_job)
    shown = report._repr_html_()
    assert shown.count("<tr>") == 5  # four candidates and the head
    hostile = Report({**report, "conclusion": "<script>alert(1)</script>"})
    assert "<script>" not in hostile._repr_html_()
    assert json.loads(json.dumps(report)) == dict(report)
