"""Small real image sets that need no download: scikit-learn's digits, Debian's Fashion-MNIST, an imagefolder zip."""

import gzip
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from known_core.errors import KnownError

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip


@dataclass(frozen=True)
class ImageArrays:
    """Images (N, H, W) or (N, H, W, 3) uint8, labels (N,) int64, and the name of each class."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def of_classes(self, wanted: list[int]) -> "ImageArrays":
        """The examples of some classes, renumbered from 0 in the order given."""
        keep = np.isin(self.labels, wanted)
        number = {label: index for index, label in enumerate(wanted)}
        labels = np.array([number[label] for label in self.labels[keep].tolist()], dtype=np.int64)
        return ImageArrays(self.images[keep], labels, tuple(self.classes[label] for label in wanted))

    def take(self, indices: NDArray[np.int64]) -> "ImageArrays":
        return ImageArrays(self.images[indices], self.labels[indices], self.classes)


def load_sample(name: str) -> ImageArrays:
    """Args: name: "digits", "fashion", or the path of an imagefolder zip (its train split is read).

    Raises:
        KnownError: ``sample_missing`` with the command that installs it.
    """
    if name == "digits":
        return _digits()
    if name == "fashion":
        return _fashion()
    if Path(name).is_file():
        return _imagefolder(Path(name))
    raise KnownError("sample_missing", f"there is no sample data {name!r}", 'Use "digits", "fashion" or a zip\'s path.')


def _digits() -> ImageArrays:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise KnownError("extra_missing", "scikit-learn is not installed", "pip install 'known[demo]'") from error
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
    return ImageArrays(pixels, labels.astype(np.int64), tuple(str(digit) for digit in range(10)))


def _fashion() -> ImageArrays:
    if not FASHION_FOLDER.is_dir():
        raise KnownError(
            "sample_missing", f"Fashion-MNIST is not in {FASHION_FOLDER}", "apt-get install dataset-fashion-mnist"
        )

    def read(name: str, header: int) -> NDArray[np.uint8]:
        with gzip.open(FASHION_FOLDER / name) as stream:
            return np.frombuffer(stream.read(), dtype=np.uint8, offset=header)

    images = read("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    return ImageArrays(images, read("train-labels-idx1-ubyte.gz", 8).astype(np.int64), FASHION_CLASSES)


def _imagefolder(path: Path) -> ImageArrays:
    with zipfile.ZipFile(path) as archive:
        names = sorted(
            n for n in archive.namelist() if len(PurePosixPath(n).parts) >= 3 and "train" in PurePosixPath(n).parts
            and not n.endswith("/")
        )  # fmt: skip
        classes = sorted({PurePosixPath(name).parent.name for name in names})
        number = {name: index for index, name in enumerate(classes)}
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
        labels = [number[PurePosixPath(name).parent.name] for name in names]
    return ImageArrays(np.stack(images), np.array(labels, dtype=np.int64), tuple(classes))


def write_imagefolder(path: Path, train: ImageArrays, test: ImageArrays | None = None) -> None:
    """Write a zip in the imagefolder layout: train/<class>/<number>.png, test/<class>/<number>.png."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for split, part in (("train", train), ("test", test)):
            if part is None:
                continue
            for index, (image, label) in enumerate(zip(part.images, part.labels.tolist(), strict=True)):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, format="PNG")
                entry = zipfile.ZipInfo(f"{split}/{part.classes[label]}/{index:06d}.png", (1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, buffer.getvalue())
