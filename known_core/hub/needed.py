"""Which files of a repository are worth fetching."""

from collections.abc import Collection, Iterable, Sequence

from known_core.checkpoint.reader import INDEX, WEIGHTS
from known_core.errors import KnownError
from known_core.hub.ref import RepoKind

_BESIDE = ("adapter_model.safetensors", "head.safetensors")  # other weights that known reads
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_FORMATS = (*_PICKLES, ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".gguf", ".tflite", ".mlmodel")
_OTHER_FOLDERS = frozenset({"onnx", "coreml", "openvino"})


def needed_files(names: Iterable[str], kind: RepoKind, shards: Collection[str] = ()) -> list[str]:
    """Leave out what is not used of a repository: weights in other formats, and second copies of the weights.

    Args:
        names: all files of the repository.
        kind: of a data set everything is needed.
        shards: the files that ``model.safetensors.index.json`` names, where it is there.

    Returns:
        The names that are needed, sorted; everything that is no weights is among them, to be carried over.

    Raises:
        KnownError: ``unsafe_format`` when all weights are pickles. They are never loaded.
    """
    names = sorted(set(names) - {".gitattributes"})
    if kind == "dataset":
        return names
    safetensors = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles and not safetensors:
        raise KnownError(
            "unsafe_format",
            f"the weights are in {pickles[0][:120]!r}, a format that can run code",
            "Name a revision that was converted, such as refs/pr/1, or convert it to safetensors: "
            "https://huggingface.co/spaces/safetensors/convert",
        )
    if shards:
        chosen = {INDEX, *shards, *_BESIDE}
    elif WEIGHTS in names:
        chosen = {WEIGHTS, *_BESIDE}
    else:
        chosen = {INDEX, *(name for name in safetensors if "/" not in name)}
    return [name for name in names if _is_needed(name, names, chosen)]


def _is_needed(name: str, names: Sequence[str], chosen: Collection[str]) -> bool:
    weights = name.removesuffix(".index.json")
    if weights.endswith(".safetensors"):
        return name in chosen
    openvino = name.endswith(".xml") and name.removesuffix(".xml") + ".bin" in names
    elsewhere = any(part in _OTHER_FOLDERS or part.endswith(".mlpackage") for part in name.split("/")[:-1])
    return not (openvino or elsewhere or weights.endswith(_OTHER_FORMATS))
