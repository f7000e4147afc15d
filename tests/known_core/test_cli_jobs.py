"""The command line against a running service."""

import json
import time
from pathlib import Path

import pytest

from known_core.client import Client
from known_core.files import write_json
from known_core.stack import Stack
from tests.conftest import QUICK, Inputs, ended
from tests.known_core.conftest import Run
from tests.known_core.tasks import tiny


@pytest.fixture(autouse=True)
def _server(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN_SERVER", stack.url)


def arguments(inputs: Inputs, folder: Path) -> list[object]:
    write_json(folder / "config.json", inputs.config)
    write_json(folder / "settings.json", QUICK)
    return ["enhance", "--model", inputs.model, "--config", folder / "config.json", "--dataset", inputs.dataset,
            "--downstream", inputs.downstream, "--settings", folder / "settings.json"]  # fmt: skip


def test_enhance_waits_downloads_and_reports(run: Run, inputs: Inputs, tmp_path: Path) -> None:
    status, out, said = run(*arguments(inputs, tmp_path), "--select", "x4", "--wait", "--out", tmp_path / "out")
    assert status == 0, said
    assert "selected: x4" in out
    assert "* delivered. You asked for x4." in said
    assert "5 files in" in said  # three forms of the report, and the two of x4
    assert (tmp_path / "out" / "x4" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "x2").exists()
    job_id = out.split()[0]

    status, out, said = run("jobs", "show", job_id)
    assert (status, out) == (0, f"{job_id} succeeded\nselected: x4\n")
    assert "Before and after" in said
    status, out, said = run("report", job_id)
    assert status == 0, said
    assert "You asked for x4." in out
    assert "x4 *" in out
    status, out, _ = run("jobs", "list", "--limit", 1, "--status", "succeeded")
    assert status == 0
    assert out.splitlines()[0].split()[::2] == [job_id, "succeeded"]
    status, out, _ = run("jobs", "logs", job_id, "--tail", 5)
    assert status == 0
    assert out.startswith("attempt 1\n")
    status, out, said = run("jobs", "cancel", job_id)
    assert (status, out) == (1, "")
    assert "it is succeeded (job_ended)" in said


def test_canceling(run: Run, client: Client, inputs: Inputs, tmp_path: Path) -> None:
    status, out, _ = run(*arguments(inputs, tmp_path), "--epochs-per-stage", 1000, "--json")
    assert status == 0
    job = json.loads(out)
    assert job["request"]["forgetting"]["epochs_per_stage"] == 1000
    status, out, _ = run("jobs", "cancel", job["id"], "--json")
    assert status == 0
    assert json.loads(out)["status"] in ("canceling", "canceled")
    ended(client, job["id"])
    status, out, _ = run("jobs", "show", job["id"], "--json")
    assert status == 1  # not a success
    assert json.loads(out)["status"] == "canceled"


def test_pausing_and_resuming(run: Run, client: Client, inputs: Inputs, tmp_path: Path) -> None:
    status, out, _ = run(*arguments(inputs, tmp_path), "--epochs-per-stage", 1000, "--json")
    assert status == 0
    job_id = json.loads(out)["id"]
    status, out, _ = run("jobs", "pause", job_id)
    assert status == 0
    assert "pauses as soon as" in out or f"known jobs resume {job_id}" in out
    while client.job(job_id)["status"] != "paused":
        time.sleep(0.1)
    status, out, _ = run("jobs", "show", job_id)
    assert status == 0
    assert out.startswith(f"{job_id} paused\nIt holds no worker, and its finished stages are kept: known jobs resume")
    status, out, _ = run("jobs", "resume", job_id, "--json")
    assert status == 0
    assert json.loads(out)["status"] != "paused"
    client.cancel(job_id)
    ended(client, job_id)
    status, _, said = run("jobs", "resume", job_id)
    assert status == 1
    assert "(job_ended)" in said


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--learning-rate", "nan"], "/forgetting/learning_rate"),
        (["--learning-rate", "1e30"], "/forgetting/learning_rate"),
        (["--epochs-per-stage", "1000000000"], "/forgetting/epochs_per_stage"),
        (["--seeds", "2"], "/evaluation/seeds"),
        (["--select", "x3"], "candidate_unknown"),
    ],
)
def test_settings_that_cannot_be(
    run: Run, client: Client, inputs: Inputs, tmp_path: Path, flags: list[str], expected: str
) -> None:
    before = list(client.jobs(limit=1))
    status, out, said = run(*arguments(inputs, tmp_path), *flags)
    assert (status, out) == (1, "")
    assert expected in said
    assert "Traceback" not in said
    assert list(client.jobs(limit=1)) == before


@pytest.mark.parametrize("flag", ["--model", "--dataset", "--downstream"])
def test_files_that_are_not_there(run: Run, inputs: Inputs, tmp_path: Path, flag: str) -> None:
    status, _, said = run(*arguments(inputs, tmp_path), flag, tmp_path / "nowhere")
    assert status == 1
    assert f"{tmp_path}/nowhere" in said
    assert "file_missing" in said


def test_no_server(run: Run) -> None:
    status, _, said = run("jobs", "list", "--server", "http://127.0.0.1:9")
    assert status == 1
    assert "no answer from http://127.0.0.1:9" in said
    assert "known serve" in said


def test_a_csv_with_names_of_its_own(run: Run, tmp_path: Path) -> None:
    """Columns and labels that nobody could guess are named with flags; the dry run says what is understood."""
    tiny.save_bert(tmp_path / "bert", "BertForSequenceClassification", **tiny.labels(tiny.CLASSES))
    rows = "\n".join(f"{index},{text},{name.upper()}" for index, (text, name) in enumerate(tiny.sentences()))
    (tmp_path / "reviews.csv").write_text(f"id,review,mood\n{rows}\n")
    line = ("enhance", "--model", tmp_path / "bert", "--dataset", tmp_path / "reviews.csv", "--dry-run", "--json")
    status, _, said = run(*line)
    assert (status, "(dataset_unusable)" in said) == (1, True)
    columns = ("--column", "text=review", "--column", "label=mood")
    status, _, said = run(*line, *columns)
    assert (status, "(labels_mismatch)" in said) == (1, True)
    status, out, said = run(*line, *columns, "--label", "GLAD=glad", "--label", "SORRY=sorry")
    assert status == 0, said
    resolved = json.loads(out)["resolved"]
    assert (resolved["task"], resolved["dataset"]["format"]) == ("text-classification", "csv")
    assert resolved["dataset"]["labels"] == {"GLAD": "glad", "SORRY": "sorry"}
    status, _, said = run(*line, "--column", "review")
    assert (status, "(usage)" in said) == (1, True)
