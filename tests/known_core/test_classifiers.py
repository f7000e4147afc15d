"""Image classifiers: tiny real checkpoints in, the same names out; hostile configs refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from known_core.checkpoint import Checkpoint
from known_core.checkpoint.source import FolderSource
from known_core.errors import KnownError
from known_core.models.base import Network
from known_core.models.config import read_config
from known_core.models.processors import image_preprocessor
from known_core.models.registered import build_registered
from known_core.tasks import TASKS

classifier_for = TASKS["image-classification"].network

CNN: dict[str, Any] = {"architecture": "small-cnn", "num_classes": 3, "in_chans": 1, "img_size": 8, "width": 2}
HEADS = {"resnet": "classifier.1.", "vit": "classifier.", "small-cnn": "head."}


def config_of(family: str) -> Any:
    if family == "resnet":
        return transformers.AutoConfig.for_model(
            "resnet",
            num_channels=3,
            embedding_size=4,
            hidden_sizes=[4, 8],
            depths=[1, 1],
            layer_type="basic",
            num_labels=3,
        )
    return transformers.AutoConfig.for_model(
        "vit", image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, num_labels=3,
    )  # fmt: skip


def save_checkpoint(family: str, folder: Path) -> dict[str, Any]:
    """Write a tiny checkpoint with random weights; returns its config."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    if family == "small-cnn":
        save_file(build_registered(CNN).state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(CNN))
    else:
        kind = {"resnet": transformers.ResNetForImageClassification, "vit": transformers.ViTForImageClassification}
        kind[family](config_of(family)).save_pretrained(folder)
        size = {"height": 8, "width": 8}
        transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    return read_config(FolderSource(folder), None)


@pytest.fixture(params=["resnet", "vit", "small-cnn"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def loaded(family: str, tmp_path: Path) -> tuple[Network, Checkpoint]:
    classifier = classifier_for(save_checkpoint(family, tmp_path / "model"))
    return classifier, Checkpoint(tmp_path / "model")


def test_load_and_save_keep_every_name_and_value(loaded: tuple[Network, Checkpoint], tmp_path: Path) -> None:
    classifier, checkpoint = loaded
    classifier.check(checkpoint.shapes)
    assert classifier.num_labels == 3
    assert classifier.label_names is None
    (tmp_path / "out").mkdir()
    classifier.save(classifier.load(checkpoint), tmp_path / "out", checkpoint)
    before, after = load_file(checkpoint.path / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor)


def test_loading_copies_so_that_training_leaves_the_file_s_tensors_alone(loaded: tuple[Network, Checkpoint]) -> None:
    classifier, checkpoint = loaded
    name = next(iter(checkpoint.tensors))
    before = checkpoint.read(name).clone()
    with torch.no_grad():
        for parameter in classifier.load(checkpoint).parameters():
            parameter.fill_(7)
    assert torch.equal(checkpoint.read(name), before)
    again = classifier.load(checkpoint)
    assert not any((parameter == 7).all() for parameter in again.parameters())


@pytest.mark.parametrize("num_labels", [3, 5])
def test_a_new_head_is_seeded_and_the_body_kept(
    loaded: tuple[Network, Checkpoint], family: str, num_labels: int
) -> None:
    classifier, checkpoint = loaded
    base = classifier.load(checkpoint).state_dict()
    models = []
    for seed, disturbance in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(disturbance)
        models.append(classifier.load_with_new_head(checkpoint, num_labels, seed).state_dict())
    assert base.keys() == models[0].keys()
    weight = f"{HEADS[family]}weight"
    for name, tensor in base.items():
        assert torch.equal(models[0][name], models[1][name])
        if name.startswith(HEADS[family]):
            assert models[0][name].shape[0] == num_labels
        else:
            assert torch.equal(models[0][name], tensor)
            assert torch.equal(models[2][name], tensor)
    assert not torch.equal(models[0][weight], models[2][weight])
    assert num_labels != 3 or not torch.equal(models[0][weight], base[weight])
    assert models[0][weight].std() > 0


def test_half_precision_checkpoints_load_in_float32(family: str, tmp_path: Path) -> None:
    config = save_checkpoint(family, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    half = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(half, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    model = classifier_for(config).load(Checkpoint(tmp_path / "m"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_images_of_any_mode_and_size_enter(loaded: tuple[Network, Checkpoint], mode: str) -> None:
    classifier, checkpoint = loaded
    images = [Image.new(mode, (20, 11)), Image.new(mode, (3, 8))]
    pixels = image_preprocessor(classifier, FolderSource(checkpoint.path))(images)
    assert pixels.dtype == torch.float32
    assert pixels.shape[0] == 2
    with torch.inference_mode():
        assert classifier.load(checkpoint).eval()(pixels)["logits"].shape == (2, 3)


def test_registered_preprocessing_is_pinned() -> None:
    image = Image.new("L", (8, 8), 51)
    assert image_preprocessor(classifier_for(CNN), FolderSource(Path()))([image])[0, 0, 0, 0] == pytest.approx(-0.6)
    scaled = image_preprocessor(classifier_for({**CNN, "mean": [0.1], "std": [0.2]}), FolderSource(Path()))([image])
    assert scaled[0, 0, 0, 0] == pytest.approx(0.5)


def test_all_mismatches_in_one_error(loaded: tuple[Network, Checkpoint], family: str) -> None:
    classifier, checkpoint = loaded
    shapes = checkpoint.shapes
    weight, bias = f"{HEADS[family]}weight", f"{HEADS[family]}bias"
    del shapes[bias]
    shapes[weight] = (7, *shapes[weight][1:])
    shapes["new.weight"] = (1,)
    with pytest.raises(KnownError, match=r"\(tensors_mismatch\)") as caught:
        classifier.check(shapes)
    for part in (f"missing {bias}", "unexpected new.weight", f"{weight} is [7, "):
        assert part in caught.value.message


def test_label_names(tmp_path: Path) -> None:
    assert classifier_for({**CNN, "label_names": ["a", "b", "c"]}).label_names == ["a", "b", "c"]
    config = save_checkpoint("vit", tmp_path / "m") | {"id2label": {"0": "cat", "1": "dog", "2": "eel"}}
    assert classifier_for(config).label_names == ["cat", "dog", "eel"]
    for names in (["a"], "abc", [1, 2, 3], {"a": 1}):
        with pytest.raises(KnownError, match=r"\(config_invalid\)"):
            classifier_for({**CNN, "label_names": names})


def test_as_many_labels_as_imagenet_21k_has(tmp_path: Path) -> None:
    names = {str(index): f"class {index}" for index in range(21_841)}
    numbers = {name: int(index) for index, name in names.items()}
    config = save_checkpoint("vit", tmp_path / "m") | {"id2label": names, "label2id": numbers}
    assert classifier_for(config).num_labels == 21_841


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"architecture": "mega-net"}, "unsupported_architecture"),
        ({"architecture": ["small-cnn"]}, "unsupported_architecture"),
        ({"architecture": None}, "unsupported_architecture"),
        ({"num_classes": 10**9}, "config_invalid"),
        ({"num_classes": 1}, "config_invalid"),
        ({"num_classes": "3"}, "config_invalid"),
        ({"num_classes": True}, "config_invalid"),
        ({"width": 10**9}, "config_invalid"),
        ({"img_size": 7}, "config_invalid"),
        ({"in_chans": 2}, "config_invalid"),
        ({"in_chans": 4}, "config_invalid"),
        ({"norm": "layer"}, "config_invalid"),
        ({"norm": ["batch"]}, "config_invalid"),
        ({"layers": 10**6}, "config_invalid"),
        ({"mean": "grey"}, "config_invalid"),
        ({"mean": [0.5, 0.5]}, "config_invalid"),
        ({"std": [0.0]}, "config_invalid"),
        ({"std": [1, 1, 1]}, "config_invalid"),
        ({"std": [1e-300]}, "config_invalid"),
        ({"mean": [float("nan")]}, "config_invalid"),
        ({"mean": [10**400]}, "config_invalid"),
    ],
    ids=str,
)
def test_registered_configs_that_are_refused(change: dict[str, Any], code: str) -> None:
    with pytest.raises(KnownError, match=rf"\({code}\)"):
        image_preprocessor(classifier_for({**CNN, **change}), FolderSource(Path()))


def test_a_registered_config_without_its_number_of_classes() -> None:
    with pytest.raises(KnownError, match=r"num_classes.*\(config_invalid\)"):
        classifier_for({"architecture": "small-cnn"})


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "evil"},
        {"model_type": None},
        {"model_type": ["vit"]},
        {"architectures": ["EvilForImageClassification"]},
        {"architectures": ["ViTModel"]},
        {"architectures": "ViTForImageClassification"},
        {"architectures": [["x"]]},
        {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
    ],
    ids=str,
)
def test_architectures_that_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(KnownError, match=r"\(unsupported_architecture\)"):
        classifier_for(save_checkpoint("vit", tmp_path / "m") | change)


@pytest.mark.parametrize("change", [
    {"hidden_size": "wide"}, {"hidden_size": -1}, {"hidden_size": 7}, {"num_hidden_layers": -1}, {"patch_size": 0},
    {"num_attention_heads": 0}, {"hidden_act": "evil"}, {"id2label": [1]}, {"id2label": {"a": "b"}},
    {"image_size": 10**9}, {"hidden_size": 10**9}, {"dtype": "nonsense"}, {"num_channels": None}, {"qkv_bias": []},
    {"id2label": {"5": "only"}},
], ids=str)  # fmt: skip
def test_absurd_transformers_configs_are_refused_before_any_allocation(tmp_path: Path, change: dict[str, Any]) -> None:
    config = save_checkpoint("vit", tmp_path / "m")
    shapes = Checkpoint(tmp_path / "m").shapes
    with pytest.raises(KnownError) as caught:
        classifier_for(config | change).check(shapes)
    assert caught.value.code in ("config_invalid", "tensors_mismatch", "model_too_large")


def test_a_million_layers_are_refused_at_once(tmp_path: Path) -> None:
    """In a process of its own: building them, even without memory for weights, takes minutes."""
    config = save_checkpoint("vit", tmp_path / "m") | {"num_hidden_layers": 1_000_000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = (
        "import json, sys; from known_core.errors import KnownError\n"
        "from known_core.tasks import TASKS\n"
        "import time; print('ready', flush=True); config = json.load(open(sys.argv[1]))\n"
        "try: TASKS['image-classification'].network(config).check({'x': (1,)})\n"
        "except KnownError as error: print(error.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "config.json")],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["ready", "model_too_large"], done.stderr


def folder_with(tmp_path: Path, config: str | None, **files: str) -> FolderSource:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    for name, text in files.items():
        (tmp_path / name.replace("_dot_", ".")).write_text(text)
    return FolderSource(tmp_path)


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (None, "config_missing"),
        ("not json", "config_invalid"),
        ("[]", "config_invalid"),
        ('"x"', "config_invalid"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "config_invalid"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "config_invalid"),
        ('{"auto_map": {"AutoModel": "evil.Model"}}', "remote_code_refused"),
        ('{"auto_map": null}', "remote_code_refused"),
        ('{"a": [{"b": {"auto_map": {}}}]}', "remote_code_refused"),
        ('{"a": ' * 100 + "1" + "}" * 100, "config_invalid"),
        ('{"label_names": ["\\ud800"]}', "config_invalid"),
        ('{"trust_remote_code": true}', "config_field_refused"),
        ('{"a": [[{"trust_remote_code": true}]]}', "config_field_refused"),
        ('{"_attn_implementation_internal": "evil/kernel"}', "config_field_refused"),
        ('{"text_config": {"_attn_implementation": "evil/kernel"}}', "config_field_refused"),
        ('{"attn_implementation": "evil/kernel"}', "config_field_refused"),
        ('{"custom_pipelines": {}}', "config_field_refused"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_config_files_that_are_refused(tmp_path: Path, config: str | None, code: str) -> None:
    with pytest.raises(KnownError, match=rf"\({code}\)"):
        read_config(folder_with(tmp_path, config), None)


def test_configs_given_with_the_request(tmp_path: Path) -> None:
    assert read_config(folder_with(tmp_path, None), CNN) == CNN
    with pytest.raises(KnownError, match=r"\(remote_code_refused\)"):
        read_config(folder_with(tmp_path, None), {"auto_map": {}})
    with pytest.raises(KnownError, match=r"\(config_invalid\)") as caught:
        read_config(folder_with(tmp_path, "{}"), CNN)
    assert caught.value.pointer == "/model/config"


def test_code_beside_the_weights(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=r"modeling_evil\.py.*\(remote_code_refused\)"):
        read_config(folder_with(tmp_path, "{}", modeling_evil_dot_py="import os"), None)


def test_transformers_checkpoints_need_their_processor(tmp_path: Path) -> None:
    config = save_checkpoint("vit", tmp_path / "m")
    image_preprocessor(classifier_for(config), FolderSource(tmp_path / "m"))
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    with pytest.raises(KnownError, match=r"\(processor_missing\)"):
        image_preprocessor(classifier_for(config), FolderSource(tmp_path / "m"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("not json", "processor_invalid"),
        ("[]", "processor_invalid"),
        ('{"image_processor_type": "Evil"}', "processor_invalid"),
        ('{"image_processor_type": "AutoModel"}', "processor_invalid"),
        (
            '{"image_processor_type": "ViTImageProcessor", "size": {"height": 100000, "width": 100000}}',
            "processor_invalid",
        ),
        ('{"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5]}', "processor_invalid"),
        (
            '{"image_processor_type": "ViTImageProcessor", "auto_map": {"AutoImageProcessor": "evil.P"}}',
            "remote_code_refused",
        ),
    ],
    ids=["text", "list", "unknown", "model", "size", "mean", "auto_map"],
)
def test_hostile_processors_are_refused_at_inspection(tmp_path: Path, text: str, code: str) -> None:
    config = save_checkpoint("vit", tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text(text)
    with pytest.raises(KnownError, match=rf"\({code}\)"):
        image_preprocessor(classifier_for(config), FolderSource(tmp_path / "m"))


def test_only_the_processor_file_that_was_checked_is_read(tmp_path: Path) -> None:
    """transformers itself would prefer processor_config.json."""
    config = save_checkpoint("vit", tmp_path)
    (tmp_path / "processor_config.json").write_text(
        '{"image_processor": {"image_processor_type": "ViTImageProcessor", "size": {"height": 4, "width": 4}}}'
    )
    pixels = image_preprocessor(classifier_for(config), FolderSource(tmp_path))([Image.new("RGB", (9, 9))])
    assert pixels.shape == (1, 3, 8, 8)
