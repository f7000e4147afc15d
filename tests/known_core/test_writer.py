"""Files written tensor by tensor: the same table, new values, whole or absent."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from known_core.checkpoint import Checkpoint, TensorWriter
from known_core.checkpoint.header import Header

TENSORS = {
    "b": torch.randn(3, 2),
    "a": torch.randn(5).to(torch.bfloat16),
    "half": torch.randn(3).half(),
    "count": torch.tensor(3),
    "mask": torch.tensor([True, False]),
    "none": torch.zeros(0, 2),
    "näme": torch.tensor(0.5),
}


@pytest.fixture
def like(tmp_path: Path) -> Header:
    save_file(TENSORS, tmp_path / "in.safetensors", metadata={"author": "ü", "version": "1"})
    return Checkpoint(tmp_path / "in.safetensors").headers["model.safetensors"]


def test_names_order_dtypes_and_metadata_are_mirrored(tmp_path: Path, like: Header) -> None:
    out = tmp_path / "out.safetensors"
    with TensorWriter(out, like) as writer:
        for name in reversed(like.tensors):  # in any order
            writer.write(name, TENSORS[name])
    written = load_file(out)
    for name, tensor in TENSORS.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor)
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"author": "ü", "version": "1", "format": "pt"}
    assert list(Checkpoint(out).headers["model.safetensors"].tensors) == list(like.tensors)
    assert int.from_bytes(out.read_bytes()[:8], "little") % 8 == 0


def test_another_format_in_the_metadata_is_kept(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "in.safetensors", metadata={"format": "mlx"})
    header = Checkpoint(tmp_path / "in.safetensors").headers["model.safetensors"]
    with TensorWriter(tmp_path / "out.safetensors", header) as writer:
        writer.write("a", torch.ones(1))
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "mlx"}


def test_layouts_other_than_contiguous_are_written_by_value(tmp_path: Path) -> None:
    values = torch.randn(4, 6)
    save_file({"a": values}, tmp_path / "in.safetensors")
    header = Checkpoint(tmp_path / "in.safetensors").headers["model.safetensors"]
    with TensorWriter(tmp_path / "out.safetensors", header) as writer:
        writer.write("a", values.t().contiguous().t().requires_grad_())
    assert torch.equal(load_file(tmp_path / "out.safetensors")["a"], values)


def test_a_failed_block_leaves_nothing(tmp_path: Path, like: Header) -> None:
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out.safetensors"
    with pytest.raises(RuntimeError, match="stop"), TensorWriter(out, like) as writer:  # noqa: PT012
        writer.write("b", TENSORS["b"])
        raise RuntimeError("stop")
    assert sorted(tmp_path.iterdir()) == before


def test_missing_tensors_leave_nothing(tmp_path: Path, like: Header) -> None:
    before = sorted(tmp_path.iterdir())
    with (
        pytest.raises(ValueError, match="6 tensors were never written"),
        TensorWriter(tmp_path / "out.safetensors", like) as writer,
    ):
        writer.write("b", TENSORS["b"])
    assert sorted(tmp_path.iterdir()) == before


def test_a_failure_keeps_the_file_that_was_there(tmp_path: Path, like: Header) -> None:
    (tmp_path / "out.safetensors").write_bytes(b"old")
    with pytest.raises(ValueError, match="never written"), TensorWriter(tmp_path / "out.safetensors", like):
        pass
    assert (tmp_path / "out.safetensors").read_bytes() == b"old"


def test_a_tensor_of_another_size_is_refused(tmp_path: Path, like: Header) -> None:
    with pytest.raises(ValueError, match="b has"), TensorWriter(tmp_path / "out.safetensors", like) as writer:
        writer.write("b", torch.zeros(3, 3))


def test_a_tensor_of_another_shape_and_the_same_size_is_refused(tmp_path: Path, like: Header) -> None:
    with pytest.raises(ValueError, match="b has"), TensorWriter(tmp_path / "out.safetensors", like) as writer:
        writer.write("b", torch.zeros(2, 3))


def test_a_tensor_of_another_shape_or_dtype_never_lands_as_raw_bytes(tmp_path: Path, like: Header) -> None:
    """write() promises the mirrored shape and a converted dtype; equal byte counts must not be enough."""
    rest = {name: tensor for name, tensor in TENSORS.items() if name != "half"}
    with TensorWriter(tmp_path / "out.safetensors", like) as writer:
        writer.write("half", TENSORS["half"].to(torch.bfloat16))
        for name, tensor in rest.items():
            writer.write(name, tensor)
    written = load_file(tmp_path / "out.safetensors")["half"]
    torch.testing.assert_close(written, TENSORS["half"], atol=0.05, rtol=0.01)
