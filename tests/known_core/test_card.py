"""The model card says what the report says, to people and to the Hub, whatever strangers call their things."""

import io
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt
from PIL import Image

from known_core.card import PICTURES, draw_pictures, render_card
from known_core.comparison import UNCHANGED
from known_core.files import sha256_file
from known_core.manifest import write_manifest
from tests.artifacts import BASE_CARD, HYPERMODEL, SOURCES, facts, sample_manifest, sample_report


def card(report: dict[str, Any], candidate: str = "x4", **options: Any) -> ModelCard:
    options = {"target_repo": "alice/base-know", **options}
    return ModelCard(render_card(report, sample_manifest(), candidate=candidate, **options))


def metadata(made: ModelCard) -> dict[str, Any]:
    found: dict[str, Any] = made.data.to_dict()  # type: ignore[no-untyped-call]
    return found


def html(text: str) -> str:
    return str(MarkdownIt("commonmark").enable("table").render(text))


def rows(text: str) -> dict[str, list[list[str]]]:
    """Cells of every table row, by its first cell without emphasis."""
    found: dict[str, list[list[str]]] = {}
    for line in re.findall(r"^\| (.*) \|$", text, flags=re.MULTILINE):
        cells = re.split(r"(?<!\\) \| ", line)
        found.setdefault(cells[0].strip("*"), []).append(cells[1:])
    return found


def test_the_figures_are_those_of_the_report() -> None:
    report = sample_report()
    text = card(report).text
    table = rows(text)
    for name, probe in report["transfer"].items():
        own, bold = report["own_task"][name], "**" if name == "x4" else ""
        assert table[name][0][0] == f"{bold}{100 * probe['mean']:.2f}{bold}"
        assert table[name][1][0] == f"{bold}{100 * own['accuracy']:.2f}{bold}"
        if name != UNCHANGED:
            low, high = 100 * probe["gain"]["low"], 100 * probe["gain"]["high"]
            assert f"[{low:+.2f}, {high:+.2f}]" in table[name][0][1]
    assert table["Base model"][0][1] == f"commit `{'a' * 40}`"
    assert "config small, split train" in table["Data it was trained on (D_0)"][0][0]
    assert table["Data of the transfer probe"][0] == ["uploaded", f"sha256 `{'3' * 64}`"]
    assert table["wall time"][0][0] == "inputs 0.5 s, fan 15.0 s, evaluation 7.2 s, nowcast 1.0 s"
    for words in (*report["notes"], HYPERMODEL["sha256"], "2508.05059", "known reproduce known/manifest.json"):
        assert words in text
    assert 'AutoModelForImageClassification.from_pretrained("alice/base-know")' in text


def test_the_metadata_is_what_the_hub_reads() -> None:
    report = sample_report()
    data = metadata(card(report, base_card=BASE_CARD))
    assert data | {"model-index": None} == {
        "base_model": "alice/base",
        "base_model_relation": "finetune",
        "datasets": ["alice/data"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "metrics": ["accuracy"],
        "pipeline_tag": "image-classification",
        "tags": ["known", "know-prediction", "weight-prediction", "known-x4", "arxiv:2508.05059"],
        "model-index": None,
    }
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "base-know"
    assert eval_results_to_model_index(name, results) == data["model-index"]
    values = {
        (result.dataset_type, str(result.metric_name).rpartition(", ")[2]): result.metric_value for result in results
    }
    assert values == {
        ("alice/data", "this model"): round(report["own_task"]["x4"]["accuracy"], 4),
        ("alice/data", "given weights"): round(report["own_task"][UNCHANGED]["accuracy"], 4),
        ("upload", "this model"): round(report["transfer"]["x4"]["mean"], 4),
        ("upload", "given weights"): round(report["transfer"][UNCHANGED]["mean"], 4),
    }


def test_no_gain_is_said_first() -> None:
    report = sample_report({"x2": 0.0, "x4": -0.02})
    assert report["selected"] == UNCHANGED
    unchanged = card(report, UNCHANGED)
    assert "These weights are the weights that were given, unchanged." in unchanged.text
    assert "Nothing was gained" in unchanged.text.partition("## ")[0]
    assert len(metadata(unchanged)["model-index"][0]["results"]) == 2  # before and after are one
    assert "a loss was shown" in card(report, "x4").text


def test_a_candidate_that_was_not_selected_is_not_praised() -> None:
    report = sample_report({"x2": 0.03, "x4": -0.02})
    assert report["selected"] == "x2"
    assert "a gain was shown" in card(report, "x2").text
    assert "a gain was shown" not in card(report, "x4").text
    assert "The job selected x2" in card(report, UNCHANGED).text
    swa = card(sample_report(), "swa").text
    assert "a candidate without prediction" in swa.partition("## ")[0]


def test_a_trajectory_without_data_claims_nothing() -> None:
    whole = sample_report()
    report = {key: whole[key] for key in ("hypermodel", "weights_predicted", "task")}
    report |= {"settings": {"nowcast": {"recurrences": 3}}, "sources": {"model": SOURCES["model"]}}
    made = card(report)
    assert "from five given states" in made.text
    assert "Nothing was measured" in made.text
    for word in ("Before and after", "forgetting-curve", "transfer probe", "benchmark"):
        assert word not in made.text
    assert "model-index" not in metadata(made)
    assert metadata(made)["base_model"] == "alice/base"


@pytest.mark.parametrize(
    ("library", "task", "words"),
    [
        ("transformers", "causal-lm", 'AutoModelForCausalLM.from_pretrained("alice/base-know")'),
        ("timm", "image-classification", 'timm.create_model("hf-hub:alice/base-know", pretrained=True)'),
        ("torchvision", "semantic-segmentation", 'for name in ["model.safetensors"]:'),
        ("registered", "image-classification", "state |= load_file"),
        ("peft", "masked-lm", f'AutoModelForMaskedLM.from_pretrained("alice/base", revision="{"a" * 40}")'),
        (None, "feature-extraction", "load_state_dict"),
    ],
)
def test_how_to_load_it(library: str | None, task: str, words: str) -> None:
    sources = {**SOURCES, "base": SOURCES["model"]} if library == "peft" else SOURCES
    made = card(sample_report(library=library, task=task, sources=sources))
    assert words in made.text
    for code in re.findall(r"```python\n(.*?)```", made.text, flags=re.DOTALL):
        compile(code, "card", "exec")
    data = metadata(made)
    assert data.get("library_name") == (None if library == "registered" else library)
    assert data["base_model_relation"] == ("adapter" if library == "peft" else "finetune")
    assert data["pipeline_tag"] in {
        "text-generation", "image-classification", "image-segmentation", "fill-mask", "feature-extraction"
    }  # fmt: skip


def test_uploads_have_no_place_on_the_hub() -> None:
    uploads = {"model": {"sha256": "1" * 64}, "dataset": {"sha256": "2" * 64}}
    for report in (sample_report(sources=uploads), sample_report(sources={})):
        data = metadata(card(report))
        assert not {"base_model", "base_model_relation", "datasets"} & data.keys()
        assert [result["dataset"]["type"] for result in data["model-index"][0]["results"]] == ["upload"]


HOSTILE = "a|b\n---\n# <script>alert(1)</script> `x` **b** [l](javascript:x) ![i](http://e/x.png) \u202e&lt; {{x}}"


def test_strangers_words_stay_words() -> None:
    hub = {"repo_id": HOSTILE, "config": HOSTILE, "split": HOSTILE, "revision": HOSTILE}
    report = sample_report(sources={"model": {"hub": hub}, "dataset": {"hub": hub}, "downstream": {"sha256": HOSTILE}})
    report["notes"] = [HOSTILE]
    report["conclusion"], report["selected"] = HOSTILE, "x4"
    report["settings"]["forgetting"][HOSTILE] = HOSTILE
    report["hypermodel"] = {"name": HOSTILE, "sha256": HOSTILE}
    clean, made = card(sample_report()), card(report, target_repo=f"alice/{HOSTILE}")
    page = html(made.text)
    for tag in ("<script", "<img", "<strong>b", 'javascript:x"', "<h1"):
        assert page.count(tag) == html(clean.text).count(tag), tag
    assert "\u202e" not in str(made)
    assert metadata(made).keys() == metadata(clean).keys()
    assert "\n" not in metadata(made)["base_model"]
    cells = {line.replace("\\|", "").count("|") for line in made.text.splitlines() if line.startswith("| Base model")}
    assert cells == {4}


@pytest.mark.parametrize("text", ["", "no metadata", "---\nlicense: [a]\n---\n", "---\n- a\n---\n", "---\n: {\n---\n"])
def test_a_base_card_without_a_readable_license(text: str) -> None:
    assert "license" not in metadata(card(sample_report(), base_card=text))


def test_a_named_license_is_taken_over_whole() -> None:
    base = "---\nlicense: other\nlicense_name: mine\nlicense_link: https://example.org/l\n---\n"
    data = metadata(card(sample_report(), base_card=base))
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "mine", "https://example.org/l")


def test_the_checksums_can_be_run(tmp_path: Path) -> None:
    folder = tmp_path / "x4"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("the base model's, which the card replaces")
    write_manifest(tmp_path, facts())
    manifest = sample_manifest() | {
        "files": [{"path": "x4/config.json", "sha256": sha256_file(folder / "config.json")},
                  {"path": "x4/README.md", "sha256": "0" * 64}],
    }  # fmt: skip
    text = render_card(sample_report(), manifest, candidate="x4", target_repo="a/b")
    script = re.search(r"```sh\n(sha256sum.*?)```", text, flags=re.DOTALL)
    assert script
    done = subprocess.run(["sh", "-ec", script[1]], cwd=folder, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (0, "config.json: OK\n")


def test_the_pictures_open_and_are_the_same_each_time() -> None:
    made = draw_pictures(sample_report())
    assert made == draw_pictures(sample_report())
    assert set(made) == set(PICTURES.values())
    text = card(sample_report()).text
    for path, content in made.items():
        assert f"]({path})" in text
        assert len(content) < 150_000
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.width == 1080
            assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)  # a dark page cannot swallow the words
    other = draw_pictures(sample_report({"continued": 0.01, "x1.11": -0.1}))
    assert all(other[path] != content for path, content in made.items())


def test_a_trajectory_without_data_shows_its_plane() -> None:
    whole = sample_report()
    report = {name: whole[name] for name in ("hypermodel", "weights_predicted", "task", "plane", "weight_changes")}
    report |= {"settings": {}, "sources": {}}
    report["plane"]["surface"] = None
    assert set(draw_pictures(report)) == {PICTURES["landscape"]}
    assert PICTURES["landscape"] in card(report).text
