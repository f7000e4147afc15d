"""The worked example of docs/tasks.md is a task that runs; every task and its metric stand on that page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from known_core.errors import KnownError
from known_core.tasks import TASKS
from tests.known_core.tasks import tiny
from tests.known_core.tasks.test_jobs import run_job

PAGE = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text(encoding="utf-8")


def test_the_page_s_example_runs(tmp_path: Path, hypermodel_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN_HYPERMODEL", str(hypermodel_file))
    example = re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert example is not None
    names: dict[str, Any] = {}
    exec(example[1], names)
    task = names["NextSentencePrediction"]()
    monkeypatch.setitem(TASKS, task.name, task)
    model = tiny.save_bert(tmp_path / "model", "BertForNextSentencePrediction")
    texts = [text for text, _ in tiny.sentences()]
    rows = [{"text": texts[index], "next": texts[(index + index % 2 * 7 + 1) % 100], "label": index % 2}
            for index in range(100)]  # fmt: skip
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, report = run_job(tmp_path, model=model, dataset=tmp_path / "data.jsonl", task=task.name)
    assert (report["task"], report["metric"]) == (task.name, task.metric)
    with pytest.raises(KnownError, match=r"a next-sentence predictor.*\(unsupported_architecture\)"):
        task.network({"model_type": "bert", "architectures": ["BertForMaskedLM"]})


def test_every_task_is_in_the_table() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|[^|]*\|[^|]*\| ([^|]*) \|", PAGE, flags=re.MULTILINE)
    assert {name for name, _ in rows} == set(TASKS)
    assert all(metric.startswith(TASKS[name].metric) for name, metric in rows)
