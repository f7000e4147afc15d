"""The model card of a candidate, as Markdown for people and YAML metadata for the Hub, and the pictures it shows.

Names of repositories, data sets, labels and files are strangers' words: whatever comes from them goes through
:func:`_plain` before it stands in YAML or in a block of code, and through :func:`_text` before it stands in Markdown.
"""

import json
import re
from collections import defaultdict
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from known_core.comparison import UNCHANGED, conclusion
from known_core.figures import figures_of, render_png
from known_core.points import points
from known_core.statistics import Interval

PICTURES = {  # figures that the card shows, and where they are in the repository
    "before_after": "known/before-after.png",
    "landscape": "known/landscape.png",
    "forgetting": "known/forgetting-curve.png",
}
_PIPELINE_TAGS = {  # where the Hub has another word for a task than known
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "semantic-segmentation": "image-segmentation",
}
_AUTO_CLASSES = {  # of transformers, by pipeline tag: the model's, and what prepares its input
    "image-classification": ("AutoModelForImageClassification", "AutoImageProcessor"),
    "image-segmentation": ("AutoModelForSemanticSegmentation", "AutoImageProcessor"),
    "text-classification": ("AutoModelForSequenceClassification", "AutoTokenizer"),
    "token-classification": ("AutoModelForTokenClassification", "AutoTokenizer"),
    "text-generation": ("AutoModelForCausalLM", "AutoTokenizer"),
    "fill-mask": ("AutoModelForMaskedLM", "AutoTokenizer"),
    "feature-extraction": ("AutoModel", "AutoTokenizer"),
}
_ROLES = {
    "model": "Base model",
    "base": "Model that the adapter is of",
    "dataset": "Data it was trained on (D_0)",
    "downstream": "Data of the transfer probe",
}
_WITHOUT_PREDICTION = {
    UNCHANGED: "the weights that were given, unchanged",
    "continued": "the given weights trained on, on all of their own data: a candidate without prediction",
    "swa": "the given weights trained on, on all of their own data, for as long as the trajectory took, and averaged: "
    "a candidate without prediction",
    "mean": "the mean of all states of the trajectory: a candidate without prediction",
    "shrink": "the given weights scaled to the norms of the prediction: a candidate without prediction",
}
_MEASURED_LIMITS = [
    "The intervals of the transfer probe speak of other fine-tuning seeds on the same data and the same given weights, "
    "not of other tasks, data sets or pre-training runs. Those of D_0's own task speak of other examples of it.",
    "On this project's benchmark `swa`, training on for the same compute without any prediction, gains as much as the "
    "prediction does. Compare the rows above before a gain is put down to the prediction.",
    "Where the network has batch normalisation, its running statistics were estimated again on D_0 after prediction.",
]
_INHERITED = "Biases, errors and terms of use of the base model and of its data carry over to these weights."
_CITATION = """\
@InProceedings{Jang_2026_CVPR,
    author    = {Jang, Jinhyeok and Kim, Jaehong and Kim, Jung Uk},
    title     = {Learning from Oblivion: Predicting Knowledge-Overflowed Weights via Retrodiction of Forgetting},
    booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
    year      = {2026},
    eprint    = {2508.05059},
    archivePrefix = {arXiv}
}"""


def render_card(
    report: dict[str, Any],
    manifest: dict[str, Any],
    *,
    candidate: str,
    target_repo: str,
    base_card: str | None = None,
) -> str:
    """The README.md of one candidate.

    Args:
        report: as :func:`known_core.report.build_report` gives it; without ``transfer`` nothing was measured.
        manifest: as :func:`known_core.manifest.write_manifest` writes it.
        candidate: the one that the repository holds.
        target_repo: that repository, ``owner/name``.
        base_card: README.md of the base model, whose licence is taken over.

    Returns:
        YAML metadata and Markdown. The same report and manifest give the same text.
    """
    measured = "transfer" in report
    lines = [f"# {_text(target_repo.rpartition('/')[2])}", "", *_what_was_done(report, candidate), ""]
    lines += ["## Base model and data", "", *_table(["", "source", "commit or sha256"], _source_rows(report)), ""]
    if measured:
        lines += [*_before_and_after(report, candidate), ""]
    lines += _figures(report)
    lines += ["## Use", "", *_use(report, manifest, candidate, target_repo), ""]
    lines += ["## How it was made", "", *_made(report, manifest), ""]
    limits = [*map(_text, report.get("notes", [])), *(_MEASURED_LIMITS if measured else []), _INHERITED]
    lines += ["## Limits", "", *(f"- {limit}" for limit in limits), ""]
    lines += ["## Verify and reproduce", "", *_verify(manifest, candidate), ""]
    lines += ["## Citation", "", "```bibtex", _CITATION, "```"]
    metadata = _metadata(report, candidate, target_repo, base_card)
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"))


def draw_pictures(report: dict[str, Any]) -> dict[str, bytes]:
    """The figures that the card shows, as PNG, by their path in the repository: the same bytes for the same report."""
    return {PICTURES[figure["name"]]: render_png(report, figure["name"]) for figure in _shown(report)}


def _shown(report: dict[str, Any]) -> list[dict[str, str]]:
    return [figure for figure in figures_of(report) if figure["name"] in PICTURES]


def _figures(report: dict[str, Any]) -> list[str]:
    lines = []
    for figure in _shown(report):
        words = _text(f"{figure['title']}. {figure['caption']}")
        lines += [f"![{_text(figure['title'])}]({PICTURES[figure['name']]})", "", words, ""]
    return ["## Figures", "", *lines] if lines else []


def _metadata(report: dict[str, Any], candidate: str, target_repo: str, base_card: str | None) -> ModelCardData:
    data, library = _hub(report, "dataset"), report.get("library")
    base = next(filter(None, (_hub(report, role) for role in ("base", "model", "state-0"))), None)
    relation = "adapter" if library == "peft" else "finetune"
    results = _eval_results(report, candidate)
    metadata = ModelCardData(
        library_name=None if library == "registered" else library,
        pipeline_tag=_pipeline_tag(report),
        base_model=_plain(base["repo_id"]) if base else None,
        base_model_relation=relation if base else None,
        datasets=[_plain(data["repo_id"])] if data else None,
        metrics=[_metric(report)] if results else None,
        tags=["known", "know-prediction", "weight-prediction", f"known-{_plain(candidate)}", "arxiv:2508.05059"],
        model_name=_plain(target_repo.rpartition("/")[2]),
        eval_results=results or None,
    )
    for field, value in _license(base_card).items():
        metadata[field] = value
    return metadata


def _eval_results(report: dict[str, Any], candidate: str) -> list[EvalResult]:
    """Own task and transfer probe of what is delivered, and of the weights before."""
    own = {name: row["accuracy"] for name, row in report.get("own_task", {}).items()}
    probe = {name: row["mean"] for name, row in report.get("transfer", {}).items()}
    measured = [("own task", "dataset", own), ("downstream, fine-tuned on few examples", "downstream", probe)]
    return [
        EvalResult(
            task_type=str(_pipeline_tag(report)),
            task_name=str(_pipeline_tag(report)).replace("-", " ").capitalize(),
            **_eval_dataset(report, role),
            metric_type=_metric(report),
            metric_name=f"{_metric(report)}, {kind}, {'given weights' if name == UNCHANGED else 'this model'}",
            metric_value=round(values[name], 4),
        )
        for kind, role, values in measured
        if values
        for name in dict.fromkeys([candidate, UNCHANGED])
    ]


def _eval_dataset(report: dict[str, Any], role: str) -> dict[str, Any]:
    """Which data a figure is of; the probe of a job without downstream data is on D_0's own."""
    sources = report.get("sources", {})
    role = role if role in sources else "dataset"
    hub = _hub(report, role)
    if hub:
        name, config, revision = (_plain(hub.get(key) or "") or None for key in ("repo_id", "config", "revision"))
        return {"dataset_type": name, "dataset_name": name, "dataset_config": config, "dataset_revision": revision}
    sha256 = _plain(sources.get(role, {}).get("sha256", ""))
    return {"dataset_type": "upload", "dataset_name": "uploaded data", "dataset_revision": sha256 or None}


def _license(base_card: str | None) -> dict[str, str]:
    """The licence fields of a card, as far as it has them in a form that can be read."""
    if base_card is None:
        return {}
    try:
        data = ModelCard(base_card, ignore_metadata_errors=True).data
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}
    fields = {key: data.get(key) for key in ("license", "license_name", "license_link")}
    return {key: _plain(value) for key, value in fields.items() if isinstance(value, str)}


def _what_was_done(report: dict[str, Any], candidate: str) -> list[str]:
    hypermodel = f"the hyper-model {_text(report['hypermodel']['name'])}"
    what = _WITHOUT_PREDICTION.get(candidate)
    if what is None:
        times = _text(candidate[1:])
        what = f"those predicted for the base model with {times} times its data (KNOW prediction, CVPR 2026)"
    if "transfer" not in report:
        return [
            f"These weights are {what}. They were predicted by {hypermodel} from five given states of a trajectory, "
            "most recent first; no data was given, so no statistics were estimated again.",
            "",
            "**Nothing was measured:** whether they are a better start to fine-tune from is not known.",
        ]
    rate = report["settings"]["forgetting"]["rate"]
    return [
        f"These weights are {what}. The base model was fine-tuned on nested subsets of its data, each {rate:g} of the "
        f"one before, so that it forgets in a structured way; {hypermodel} read the trajectory of every weight and "
        "predicted what more data would have given.",
        "",
        f"**Result**, in the words of the job's report: {_text(_result(report, candidate))}",
    ]


def _result(report: dict[str, Any], candidate: str) -> str:
    """The report's conclusion, or that of a candidate which the job did not select."""
    if candidate == report["selected"]:
        return str(report["conclusion"])
    if candidate == UNCHANGED:
        return f"These are the weights from before, to compare with. The job selected {report['selected']}."
    gains = {name: Interval(**row["gain"]) for name, row in report["transfer"].items() if row["gain"]}
    return conclusion(gains, candidate, candidate, _metric(report))


def _source_rows(report: dict[str, Any]) -> list[list[str]]:
    rows = []
    for role, source in report.get("sources", {}).items():
        hub = source.get("hub")
        if hub:
            repo_id = _plain(hub["repo_id"])
            kind = "datasets/" if role in ("dataset", "downstream") else ""
            words = [f"[{_text(repo_id)}](https://huggingface.co/{kind}{quote(repo_id)})"]
            words += [f"{key} {_text(hub[key])}" for key in ("config", "split") if hub.get(key)]
            rows.append([_ROLES.get(role, _text(role)), ", ".join(words), f"commit `{_code(hub['revision'])}`"])
        else:
            rows.append([_ROLES.get(role, _text(role)), "uploaded", f"sha256 `{_code(source['sha256'])}`"])
    return rows


def _before_and_after(report: dict[str, Any], candidate: str) -> list[str]:
    inputs, evaluation, metric = report["inputs"], report["settings"]["evaluation"], _metric(report)
    probe = [
        [_text(name), f"{100 * row['mean']:.2f}", points(row["gain"]), f"{row['learning_rate']:g}"]
        for name, row in report["transfer"].items()
    ]
    own = [
        [_text(name), f"{100 * row['accuracy']:.2f}", points(row["difference"]), f"{row['loss']:.4f}"]
        for name, row in report["own_task"].items()
    ]
    names = list(report["transfer"])
    for rows in (probe, own):
        rows[names.index(candidate)] = [f"**{cell}**" for cell in rows[names.index(candidate)]]
    source = inputs.get("downstream_source", "given")
    downstream = "" if source == "given" else f"Its data is {_text(source)}. "
    return [
        "## Before and after",
        "",
        f"`{UNCHANGED}` is before; what this repository holds is in bold. Differences are paired, in points, with "
        "their 95 % interval.",
        "",
        "### Fine-tuned on another task",
        "",
        f"{downstream}Every candidate is fine-tuned on the same {evaluation['probe_examples']} examples from the same "
        f"new head, over {evaluation['seeds']} seeds, with its own learning rate.",
        "",
        *_table(["candidate", f"mean {metric}, %", "gain over unchanged [95 %]", "learning rate"], probe),
        "",
        "### On its own task, as it is",
        "",
        *_table(["candidate", f"{metric}, %", "difference [95 %]", "loss"], own),
    ]


def _use(report: dict[str, Any], manifest: dict[str, Any], candidate: str, target_repo: str) -> list[str]:
    library, repo = report.get("library"), json.dumps(_plain(target_repo))
    from_hub = json.dumps(f"hf-hub:{_plain(target_repo)}")
    model_class, processor_class = _AUTO_CLASSES.get(str(_pipeline_tag(report)), ("AutoModel", "AutoProcessor"))
    if library == "transformers":
        code = [
            f"from transformers import {model_class}, {processor_class}",
            "",
            f"model = {model_class}.from_pretrained({repo})",
            f"processor = {processor_class}.from_pretrained({repo})",
        ]
    elif library == "timm":
        code = ["import timm", "", f"model = timm.create_model({from_hub}, pretrained=True)"]
    elif library == "peft":
        base = _hub(report, "base")
        of_base = f"{json.dumps(_plain(base['repo_id']))}, revision={json.dumps(base['revision'])}" if base else '"..."'
        code = [
            "from peft import PeftModel",
            f"from transformers import {model_class}",
            "",
            f"base = {model_class}.from_pretrained({of_base})",
            f"model = PeftModel.from_pretrained(base, {repo})",
        ]
    else:
        weights = [name for name in _files(manifest, candidate) if name.endswith(".safetensors")]
        code = [
            "from huggingface_hub import hf_hub_download",
            "from safetensors.torch import load_file",
            "",
            "state = {}",
            f"for name in {json.dumps([_plain(name) for name in weights])}:",
            f"    state |= load_file(hf_hub_download({repo}, name))",
            "model.load_state_dict(state)  # of the network that the base model is",
        ]
    return ["A start to fine-tune from; load it as the base model:", "", "```python", *code, "```"]


def _made(report: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    settings = [
        [section, f"`{_code(name)}`", f"`{_code(json.dumps(value))}`"]
        for section in ("forgetting", "nowcast", "evaluation")
        for name, value in report["settings"].get(section, {}).items()
    ]
    hypermodel = report["hypermodel"]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items() if version)
    seconds: dict[str, float] = defaultdict(float)
    for stage, spent_s in manifest.get("seconds", {}).items():
        seconds[re.sub(r"-.*", "", stage)] += spent_s
    facts = [
        ["hyper-model", f"{_text(hypermodel['name'])}, sha256 `{_code(hypermodel['sha256'])}`"],
        ["weights predicted", ", ".join(f"{kind} {n:,}" for kind, n in report.get("weights_predicted", {}).items())],
        ["versions", _text(versions)],
        ["device, engine", _text(f"{manifest.get('device', '')}, {manifest.get('engine', '')}")],
        ["wall time", ", ".join(f"{_text(name)} {spent_s:.1f} s" for name, spent_s in seconds.items())],
    ]
    return [*_table(["", ""], facts), "", "### Settings", "", *_table(["", "", "value"], settings)]


def _verify(manifest: dict[str, Any], candidate: str) -> list[str]:
    sums = [f"{sha256}  {_plain(name)}" for name, sha256 in _files(manifest, candidate).items() if name != "README.md"]
    return [
        "The files of this candidate, as the job wrote them; run in a download of this repository:",
        "",
        "```sh",
        "sha256sum -c <<'END'",
        *sums,
        "END",
        "```",
        "",
        "`known/manifest.json` has the sha256 of every file of the job, of its inputs, subsets and hyper-model, with "
        "all settings, seeds and versions; `known/report.json` has every figure. To run the job again and compare:",
        "",
        "```sh",
        "known reproduce known/manifest.json",
        "```",
    ]


def _files(manifest: dict[str, Any], candidate: str) -> dict[str, str]:
    """Names within the candidate's folder, and their sha256."""
    prefix = f"{candidate}/"
    files = {file["path"]: file["sha256"] for file in manifest["files"]}
    return {path.removeprefix(prefix): sha256 for path, sha256 in files.items() if path.startswith(prefix)}


def _hub(report: dict[str, Any], role: str) -> dict[str, Any] | None:
    hub: dict[str, Any] | None = report.get("sources", {}).get(role, {}).get("hub")
    return hub


def _pipeline_tag(report: dict[str, Any]) -> str | None:
    """The Hub's word for the task; None where nothing is known of what the network is for."""
    task = report.get("task")
    return None if task is None else _PIPELINE_TAGS.get(task, str(task))


def _metric(report: dict[str, Any]) -> str:
    return str(report.get("metric", "accuracy"))


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Cells are Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _plain(value: object) -> str:
    """One line of printable characters: no line breaks, no controls, no marks that turn the reading direction."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())


def _text(value: object) -> str:
    """Somebody's words as Markdown that shows just them: no markup, no HTML, no end of a table's cell."""
    words = _plain(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", words)


def _code(value: object) -> str:
    """The same between backticks in a table, where only a backtick and a bar would end it."""
    return _plain(value).replace("`", "'").replace("|", "\\|")
