"""The manifest covers every file and finds every change."""

from pathlib import Path

import pytest

from known_core.errors import KnownError
from known_core.files import read_json
from known_core.manifest import verify_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "artifacts"
    for name in ("report.md", "x2/model.safetensors", "x4/model.safetensors"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    write_manifest(root, {"rate": 0.5})
    return root


def test_it_lists_and_verifies_every_file(folder: Path) -> None:
    manifest = read_json(folder / "manifest.json")
    assert [entry["path"] for entry in manifest["files"]] == [
        "report.md", "x2/model.safetensors", "x4/model.safetensors"
    ]  # fmt: skip
    assert [entry["bytes"] for entry in manifest["files"]] == [9, 20, 20]
    assert manifest["rate"] == 0.5
    assert {"python", "torch", "known", "cuda"} <= manifest["versions"].keys()
    assert verify_manifest(folder) == 3


def test_content_is_a_hash_of_names_and_bytes_alone(folder: Path) -> None:
    before = read_json(folder / "manifest.json")["content_sha256"]
    (folder / "report.md").touch()
    write_manifest(folder, {"rate": 0.7, "seconds": 1.0})
    assert read_json(folder / "manifest.json")["content_sha256"] == before
    (folder / "report.md").rename(folder / "report2.md")
    write_manifest(folder, {})
    assert read_json(folder / "manifest.json")["content_sha256"] != before


def test_every_changed_and_missing_file_is_named(folder: Path) -> None:
    (folder / "x2" / "model.safetensors").write_text("x2/model.safetensorS")
    (folder / "report.md").unlink()
    with pytest.raises(KnownError, match=r"\(checksum_mismatch\)") as caught:
        verify_manifest(folder)
    assert caught.value.message == "report.md is missing; x2/model.safetensors has another sha256"
    assert caught.value.retryable
    with pytest.raises(KnownError, match=r"^x2/model\.safetensors has another sha256 \(checksum_mismatch\)"):
        verify_manifest(folder, partial=True)


def test_part_of_the_files(folder: Path) -> None:
    (folder / "report.md").unlink()
    assert verify_manifest(folder, partial=True) == 2


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match=r"\(manifest_missing\)"):
        verify_manifest(tmp_path)


def test_a_manifest_of_the_model_s_own_is_a_file_like_any_other(folder: Path) -> None:
    (folder / "x2" / "manifest.json").write_text("{}")
    write_manifest(folder, {})
    assert "x2/manifest.json" in [entry["path"] for entry in read_json(folder / "manifest.json")["files"]]
