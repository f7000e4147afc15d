"""Several processes that train one network: the states of one, from DDP and from FSDP2; what is refused; what dies."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from known_core import pipeline
from known_core.checkpoint import Checkpoint
from known_core.errors import KnownError, ProcessDied
from known_core.files import read_json
from known_core.hypermodels import hypermodel_path, load_hypermodel
from known_core.inputs import lay_out
from known_core.models.registered import RegisteredNetwork
from known_core.nowcast import nowcast
from known_core.sharding import check_shardable
from known_core.spec import DataSettings, EvaluationSettings, ForgettingSettings, JobSpec, NowcastSettings
from known_core.stage_work import Place
from known_core.tasks.opened import OpenTask
from known_core.team import Rank, Team, TeamWish, count_processes
from known_core.training import _SHARE, _Shares
from known_core.tuning import choose_team
from tests.known_core.ranks import adds, dies, fails, fails_oddly
from tests.known_core.tasks.tiny import save_bert, save_gpt2, texts_alone, texts_with_label
from tests.known_core.teamwork import CPU, Blobs, Texts, blobs_network, both_ways, gpt2, train

# Of how far a training moved a tensor: two processes add up the same numbers in another order. Found: 2e-6 and 2e-5.
TOLERANCE = 1e-3
WITHOUT_DROPOUT: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # each has its own masks


def moved(start: dict[str, Tensor], one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest distance between two trainings' tensors, relative to how far the first moved them.

    Softmax does not see a bias of the keys: its gradient is rounding alone, which AdamW makes whole steps of.
    """
    return max(
        float((one[name] - other[name]).norm() / (one[name] - start[name]).norm())
        for name in start
        if not torch.equal(one[name], start[name]) and not name.endswith("key.bias")
    )


def test_processes_work_together_and_one_tells() -> None:
    told: list[Any] = []
    total, threads = Team(2, "ddp").run(adds, lambda *message: told.append(message), 10.0)
    assert total == 21.0
    assert threads == max(1, torch.get_num_threads() // 2)
    assert told == [("begun", 2)]


@pytest.mark.slow
def test_two_processes_give_the_states_of_one(tmp_path: Path) -> None:
    """Batches of 8 examples, in parts of 2 for each process; an epoch's last batch has 3."""
    folder = save_gpt2(tmp_path / "model", n_layer=2, **WITHOUT_DROPOUT)
    found, of_texts, held = Team(2, "ddp").run(both_ways, lambda: None, folder, tmp_path)

    alone, before = blobs_network(), blobs_network().state_dict()
    losses = train(alone, Blobs())
    assert found == pytest.approx(losses, rel=1e-4)
    together = torch.load(tmp_path / "ddp.pt", weights_only=True)
    assert moved(before, alone.state_dict(), together) < TOLERANCE

    network, checkpoint = gpt2(folder)
    language = network.load(checkpoint)
    total = sum(weight.numel() for weight in language.parameters())
    start = {name: value.clone() for name, value in language.state_dict().items()}
    assert train(language, Texts()) == pytest.approx(of_texts, rel=1e-3)
    assert held <= total // 2 + 100  # a tensor of an odd number of rows is cut unevenly
    network.save(language, tmp_path / "whole", checkpoint)
    whole, state = load_file(tmp_path / "whole/model.safetensors"), load_file(tmp_path / "state/model.safetensors")
    assert list(Checkpoint(tmp_path / "state").tensors) == list(checkpoint.tensors)
    assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in whole.items()}
    assert moved({name: start[name] for name in whole}, whole, state) < TOLERANCE

    known = load_hypermodel(hypermodel_path("known-v1"))
    states = [checkpoint, *[Checkpoint(tmp_path / "state")] * 4]
    counts = nowcast(states, known, [tmp_path / "x2"], 0.5)
    assert counts["fc"] > 0
    network.load(Checkpoint(tmp_path / "x2"))


@pytest.mark.parametrize(("count", "micro", "processes"), [(43, 2, 2), (43, 8, 3), (5, 8, 2), (8, 1, 3), (16, 3, 4)])
def test_parts_are_the_batches_of_one_process(count: int, micro: int, processes: int) -> None:
    """Every example of a batch is in one part, and the weights of the parts add up to those of the batch's mean."""
    dataset = [{"index": torch.tensor(index)} for index in range(count)]

    def collate(items: list[Any]) -> dict[str, Any]:
        return {"index": torch.stack([item["index"] for item in items])}

    shares = [_Shares(dataset, collate, 8, micro, 7, Rank(i, processes, False, CPU)) for i in range(processes)]
    rows = [list(share) for share in shares]
    assert {len(row) for row in rows} == {len(shares[0])}
    expected = torch.randperm(count, generator=torch.Generator().manual_seed(7)).tolist()
    seen: list[int] = []
    weight = dict.fromkeys(range(count), 0.0)
    for parts in zip(*rows, strict=True):
        for part in parts:
            share = float(part[_SHARE])
            for index in part["index"].tolist() if share else ():
                seen.append(index)
                weight[index] += share / len(part["index"]) / processes
    assert sorted(seen) == list(range(count))
    assert set(seen[:8]) == set(expected[:8])
    for begin in range(0, count, 8):
        batch = expected[begin : begin + 8]
        parts_of_it = -(-len(batch) // min(8, micro * processes))
        assert [weight[index] for index in batch] == pytest.approx([parts_of_it / len(batch)] * len(batch))


@pytest.mark.slow
@pytest.mark.parametrize(("work", "error"), [(dies, ProcessDied), (fails, KnownError), (fails_oddly, RuntimeError)])
def test_the_end_of_one_is_the_end_of_all(work: Callable[..., None], error: type[Exception], tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(error):
        Team(2, "ddp").run(work, lambda: None, tmp_path)
    assert time.monotonic() - begun < 60
    assert not [path.name for path in tmp_path.iterdir() if psutil.pid_exists(int(path.read_text()))]


def language_job(folder: Path) -> JobSpec:
    return JobSpec(
        model=save_gpt2(folder / "model", **WITHOUT_DROPOUT),
        dataset=texts_alone(folder / "texts.jsonl"),
        task="causal-lm",
        data=DataSettings(),
        forgetting=ForgettingSettings(learning_rate=1e-3, batch_size=8),
        nowcast=NowcastSettings(recurrences=1, controls=()),
        evaluation=EvaluationSettings(seeds=3, probe_examples=10, probe_epochs=1, probe_learning_rates=(1e-3,)),
    )


def classification_job(folder: Path) -> JobSpec:
    """The probe has a new head, in the place of the checkpoint's."""
    spec = language_job(folder)
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = save_bert(folder / "bert", "BertForSequenceClassification", num_hidden_layers=2, **without_dropout)
    data = texts_with_label(folder / "labelled.parquet")
    return spec.model_copy(update={"model": model, "dataset": data, "task": "text-classification"})


def states_of(job: Path) -> dict[str, dict[str, Tensor]]:
    found = sorted((job / "work").glob("[!.]*/state/model.safetensors"))
    return {path.parents[1].name.rsplit("-", 1)[0]: load_file(path) for path in found}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("job", "sharding"), [(language_job, "ddp"), (language_job, "fsdp"), (classification_job, "fsdp")]
)
def test_a_job_by_two_processes_is_that_of_one(job: Callable[[Path], JobSpec], sharding: Any, tmp_path: Path) -> None:
    """All states to a tolerance, through the whole pipeline; a run whose process dies goes on after the last stage."""
    spec = job(tmp_path)
    pipeline.run(spec, tmp_path / "one", lambda event: None)
    killed: list[int] = []

    def kill(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["phase"] == "forgetting" and len(states_of(tmp_path / "two")) == 1:
            ranks = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
            if len(ranks) == 2 and not killed:
                ranks[1].kill()
                killed.extend(child.pid for child in ranks)

    with pytest.raises(ProcessDied):
        pipeline.run(spec, tmp_path / "two", kill, wish=TeamWish(2, sharding))
    assert not [pid for pid in killed if psutil.pid_exists(pid)]
    assert list(states_of(tmp_path / "two")) == ["fan-0"]
    artifacts = pipeline.run(spec, tmp_path / "two", lambda event: None, wish=TeamWish(2, sharding))
    assert read_json(artifacts / "manifest.json")["trained_by"] == {"processes": 2, "sharding": sharding}
    one, two = states_of(tmp_path / "one"), states_of(tmp_path / "two")
    assert sorted(one) == sorted(two) == ["fan-0", "fan-1", "fan-2", "fan-3"]
    assert spec.model is not None
    start = load_file(spec.model / "model.safetensors")
    distances = {name: moved({key: start[key] for key in one[name]}, one[name], two[name]) for name in one}
    assert max(distances.values()) < TOLERANCE, distances


def test_batch_norm_is_trained_by_one_process(tiny_spec: JobSpec, tmp_path: Path) -> None:
    task, start = opened(tiny_spec, tmp_path)
    settings = tiny_spec.forgetting.model_copy(update={"precision": "float32"})
    team, why = choose_team(TeamWish(2), task, start, settings, 30, CPU)
    assert team is None
    assert why is not None
    assert "batch norm" in why


def opened(spec: JobSpec, folder: Path) -> tuple[OpenTask, Checkpoint]:
    lay_out(spec, folder / "inputs")
    place = Place(spec, folder, folder / "inputs")
    return place.open(CPU), place.original


def test_a_language_model_is_spread_where_that_is_asked_for(tmp_path: Path) -> None:
    spec = language_job(tmp_path)
    task, start = opened(spec, tmp_path / "job")
    settings = spec.forgetting.model_copy(update={"precision": "float32"})
    assert choose_team(TeamWish(2, "auto"), task, start, settings, 8, CPU)[0] == Team(2, "ddp")
    assert choose_team(TeamWish(2, "fsdp"), task, start, settings, 8, CPU)[0] == Team(2, "fsdp")
    assert choose_team(TeamWish(0, "fsdp"), task, start, settings, 8, CPU) == (None, None)
    half = settings.model_copy(update={"precision": "float16"})
    with pytest.raises(KnownError, match="bfloat16") as error:
        choose_team(TeamWish(2, "fsdp"), task, start, half, 8, CPU)
    assert error.value.code == "sharding_unsupported"


def test_how_many_processes_there_are() -> None:
    assert count_processes(TeamWish(0), 32, 100, 0) == 1
    assert count_processes(TeamWish(0), 32, 100, 8) == 8
    assert count_processes(TeamWish(0), 4, 100, 8) == 4
    assert count_processes(TeamWish(2), 32, 100, 0) == 2
    for wish, batch, smallest, devices in ((9, 32, 100, 8), (2, 1, 100, 0), (4, 32, 3, 0)):
        with pytest.raises(KnownError) as error:
            count_processes(TeamWish(wish), batch, smallest, devices)
        assert error.value.code == "processes_invalid"


def test_a_network_whose_tensors_are_not_the_checkpoint_s_is_not_spread(tmp_path: Path) -> None:
    config = {"architecture": "small-cnn", "num_classes": 2, "in_chans": 1, "img_size": 8, "width": 4, "norm": "none"}
    network = RegisteredNetwork(config)
    model = blobs_network()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    check_shardable(network, Checkpoint(tmp_path))
    state = dict(model.state_dict())
    state["another"] = state.pop("head.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(KnownError, match=r"head\.weight") as error:
        check_shardable(network, Checkpoint(tmp_path))
    assert error.value.code == "sharding_unsupported"


@pytest.mark.gpu
def test_gpus_give_the_states_of_one_process(tmp_path: Path) -> None:
    """DDP and FSDP2 with NCCL over all GPUs that there are, one of them included."""
    gpu = torch.device("cuda", 0)
    folder = save_gpt2(tmp_path / "model", n_layer=2, **WITHOUT_DROPOUT)
    Team(torch.cuda.device_count(), "ddp").run(both_ways, lambda: None, folder, tmp_path)
    alone, before = blobs_network(), blobs_network().state_dict()
    train(alone, Blobs(), device=gpu, micro_batch_size=2)
    together = torch.load(tmp_path / "ddp.pt", map_location="cpu", weights_only=True)
    assert moved(before, alone.cpu().state_dict(), together) < TOLERANCE
    network, checkpoint = gpt2(folder)
    language = network.load(checkpoint)
    start = {name: value.clone() for name, value in language.state_dict().items()}
    train(language, Texts(), device=gpu, micro_batch_size=2)
    network.save(language.cpu(), tmp_path / "whole", checkpoint)
    whole, state = load_file(tmp_path / "whole/model.safetensors"), load_file(tmp_path / "state/model.safetensors")
    assert moved({name: start[name] for name in whole}, whole, state) < TOLERANCE
