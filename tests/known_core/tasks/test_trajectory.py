"""Jobs from five checkpoints of any architecture, without data: names and shapes alone are read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from known_core import inspection, pipeline
from known_core.errors import KnownError
from known_core.files import read_json
from known_core.hypermodels import hypermodel_path, load_hypermodel
from known_core.manifest import verify_manifest
from known_core.nowcast import predict_states
from known_core.spec import EvaluationSettings, JobSpec, NowcastSettings


def save_states(folder: Path, count: int = 5) -> tuple[Path, ...]:
    """An architecture that no library has, in two precisions, on its way from ever less data."""
    generator = torch.Generator().manual_seed(0)
    weights = {"odd.mix.weight": torch.randn(6, 4, generator=generator),
               "odd.mix.bias": torch.randn(6, generator=generator),
               "odd.cube.weight": torch.randn(3, 2, 3, 3, generator=generator).bfloat16(),
               "odd.count": torch.tensor(3)}  # fmt: skip
    paths = []
    for index in range(count):
        paths.append(folder / f"state-{index}.safetensors")
        save_file(weights, paths[-1], metadata={"format": "pt"})
        weights = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
                   if tensor.is_floating_point() else tensor for name, tensor in weights.items()}  # fmt: skip
    return tuple(paths)


def test_five_states_make_candidates(tmp_path: Path) -> None:
    states = save_states(tmp_path)
    spec = JobSpec(trajectory=states, nowcast=NowcastSettings(recurrences=2, controls=("mean", "shrink", "continued")))
    assert inspection.inspect(spec) == {"task": None, "parameters": 24 + 6 + 54 + 1, "states": 5}
    artifacts = pipeline.run(spec, tmp_path / "job", lambda event: None)
    verify_manifest(artifacts)
    assert {path.name for path in artifacts.iterdir() if path.is_dir()} == {"x2", "x4", "mean", "shrink"}
    report = read_json(artifacts / "report.json")
    assert (report["task"], report["selected"], report["hypermodel"]["design"]) == (None, "x2", "chain")
    assert report["weights_predicted"] == {"conv": 54, "fc": 24, "bias": 6, "carried": 1}
    assert "Nothing was measured" in (artifacts / "report.md").read_text()
    assert "Nothing was measured" in (artifacts / "report.html").read_text()
    assert [figure["name"] for figure in report["figures"]] == ["landscape", "weight_changes"]
    assert report["plane"]["surface"] is None
    assert set(report["plane"]["points"]) == {
        *(f"state {index}" for index in range(1, 5)),
        "x2",
        "x4",
        "mean",
        "shrink",
    }
    before, after = load_file(states[0]), load_file(artifacts / "x2" / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert torch.equal(before["odd.count"], after["odd.count"])
    known = load_hypermodel(hypermodel_path("known-paper"))
    expected = predict_states(known, [load_file(state) for state in states], 0.5, 1)[0]
    for name, tensor in expected.items():
        torch.testing.assert_close(after[name], tensor)


def test_the_candidate_asked_for_is_delivered(tmp_path: Path) -> None:
    spec = JobSpec(
        trajectory=save_states(tmp_path),
        nowcast=NowcastSettings(hypermodel="known-v1", recurrences=2, controls=()),
        evaluation=EvaluationSettings(select="x4"),
    )
    report = read_json(pipeline.run(spec, tmp_path / "job", lambda event: None) / "report.json")
    assert report["selected"] == "x4"
    assert report["hypermodel"]["design"] == "fan"
    with pytest.raises(KnownError, match=r"\(candidate_unknown\)"):
        inspection.inspect(spec.model_copy(update={"evaluation": EvaluationSettings(select="swa")}))


@pytest.mark.parametrize("count", [1, 4, 6])
def test_wrong_counts(tmp_path: Path, count: int) -> None:
    with pytest.raises(KnownError, match=rf"{count} states given \(states_count\)") as caught:
        inspection.inspect(JobSpec(trajectory=save_states(tmp_path, count)))
    assert caught.value.pointer == "/trajectory"


def test_states_of_another_model(tmp_path: Path) -> None:
    states = save_states(tmp_path)
    tensors = load_file(states[3])
    for change in (
        {**tensors, "odd.mix.weight": torch.ones(4, 6)},
        {name: tensor for name, tensor in tensors.items() if name != "odd.mix.bias"},
        {**tensors, "more": torch.ones(1)},
    ):
        save_file(change, states[3])
        with pytest.raises(KnownError, match=r"state 3 is of another model.*\(states_mismatch\)") as caught:
            inspection.inspect(JobSpec(trajectory=states))
        assert caught.value.pointer == "/trajectory/3"


def test_states_that_are_broken(tmp_path: Path) -> None:
    states = save_states(tmp_path)
    tensors = load_file(states[2])
    save_file({**tensors, "odd.mix.bias": torch.full((6,), torch.nan)}, states[2])
    with pytest.raises(KnownError, match=r"\(nonfinite_weights\)"):
        pipeline.run(JobSpec(trajectory=states), tmp_path / "job", lambda event: None)
    states[2].write_bytes(states[2].read_bytes()[:-1])
    with pytest.raises(KnownError, match=r"\(size_mismatch\)") as caught:
        inspection.inspect(JobSpec(trajectory=states))
    assert caught.value.pointer == "/trajectory/2"
