"""Models larger than memory, runs that end half way, several processes, a full disk, states behind a URL."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from known_core import shards
from known_core.baselines import Continued, MatchedShrink, Mean
from known_core.checkpoint import Checkpoint
from known_core.errors import KnownError
from known_core.hypermodel import HyperModel
from known_core.hypermodels import hypermodel_path, load_hypermodel
from known_core.manifest import verify_manifest
from known_core.nowcast import nowcast, predict_tensor
from known_core.nowcast_files import nowcast_files

ROOT = Path(__file__).parents[2]
LAYERS = 6


def write_states(folder: Path, width: int = 25, sharded: bool = True) -> list[Path]:
    """Five checkpoints of six matrices and a bias, a shard for each matrix."""
    paths = []
    for seed in range(5):
        generator = torch.Generator().manual_seed(0)
        tensors = {f"layer.{i}.weight": torch.randn(width, 40, generator=generator) for i in range(LAYERS)}
        generator.manual_seed(seed)
        tensors = {name: t + 1e-2 * seed * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
        path = folder / f"state-{seed}"
        path.mkdir(parents=True)
        save_file(tensors, path / "model.safetensors")
        paths.append(path)
    if sharded:  # as Θ_0's own files, so that outputs have as many
        for path in paths:
            nowcast(
                [Checkpoint(path)] * 2,
                Continued(),
                [path.with_suffix(".s")],
                0.5,
                max_shard_size=f"{width * 160 // 1000}KB",
            )
        paths = [path.with_suffix(".s") for path in paths]
    return paths


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


@pytest.fixture
def states(tmp_path: Path) -> list[Path]:
    return write_states(tmp_path / "states")


def hypermodel(name: str) -> HyperModel:
    return load_hypermodel(hypermodel_path(name))


@pytest.mark.parametrize("name", ["known-paper", "known-v1", "shrink", "mean", "continued"])
def test_tiles_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    controls: dict[str, HyperModel] = {
        "shrink": MatchedShrink(hypermodel("known-v1"), 3), "mean": Mean("fan"), "continued": Continued()
    }  # fmt: skip
    known = controls[name] if name in controls else hypermodel(name)
    monkeypatch.setattr(shards, "TILE", 501)
    paths = write_states(tmp_path, sharded=False)[: known.states]
    nowcast([Checkpoint(path) for path in paths], known, [tmp_path / "x2", tmp_path / "x4"], 0.5)
    tensors = [load_file(path / "model.safetensors") for path in paths]
    for tensor in tensors[0]:
        whole = predict_tensor(known, "fc", [state[tensor] for state in tensors], 0.5, 2)
        for output, expected in zip(("x2", "x4"), whole, strict=True):
            found = load_file(tmp_path / output / "model.safetensors")[tensor]
            torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)
            assert not torch.equal(found, tensors[0][tensor])


_MEASURE = """
import json, sys
from pathlib import Path
import torch
from known_core.bench.nowcast import _memory
from known_core.checkpoint import Checkpoint, TensorWriter
from known_core.checkpoint.header import Header, TensorInfo
from known_core.hypermodels import hypermodel_path, load_hypermodel
from known_core.nowcast import nowcast

folder, count, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
header = Header({"w.weight": TensorInfo("BF16", (2, count // 2), 0, 2 * count)}, {}, b"")
noise = torch.randn(1 << 20)
for index in range(5):
    with TensorWriter(folder / f"{index}.safetensors", header) as writer:
        for begin in range(0, count, 1 << 20):
            size = min(1 << 20, count - begin)
            writer.write_part("w.weight", begin, (noise + 0.01 * index * noise.roll(index))[:size])
known = load_hypermodel(hypermodel_path(name))
before = _memory("VmRSS")
nowcast([Checkpoint(folder / f"{index}.safetensors") for index in range(5)], known, [folder / "x2", folder / "x4"], 0.5)
print(_memory("VmHWM") - before)
"""


def peak_bytes(folder: Path, count: int, name: str) -> int:
    """What predicting one tensor of ``count`` bfloat16 weights took above what the process had before."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(folder), str(count), name],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_is_bounded_whatever_a_tensor_s_size(tmp_path: Path) -> None:
    """One tensor of 24 million weights: its states and predictions are 336 MB, as float32 672 MB."""
    assert peak_bytes(tmp_path, 24 << 20, "known-v1") < 330 << 20


@pytest.mark.slow
def test_a_tensor_of_two_gigabytes_takes_less_than_one(tmp_path: Path) -> None:
    assert peak_bytes(tmp_path, 1 << 30, "known-v1") < 1 << 30


class Stop:
    """Raises after so many shards are done."""

    def __init__(self, shards: int, error: BaseException) -> None:
        self._shards, self._error = shards, error

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase == "nowcasting" and done > total * self._shards // LAYERS:
            raise self._error


def partial_folder(out: Path) -> Path:
    (found,) = out.parent.glob(f".{out.name}.*.partial")
    return found


def finished_shards(out: Path) -> dict[str, int]:
    """Name and time of every shard that is whole."""
    return {path.name: path.stat().st_mtime_ns for path in partial_folder(out).glob("x8/model-*.safetensors")}


def test_an_interrupted_run_goes_on_at_the_first_unfinished_shard(tmp_path: Path, states: list[Path]) -> None:
    nowcast_files(states, tmp_path / "undisturbed")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        nowcast_files(states, out, on_bytes=Stop(2, KeyboardInterrupt()))
    assert not out.exists()
    kept = finished_shards(out)
    assert sorted(kept) == [f"model-0000{index}-of-00006.safetensors" for index in (1, 2)]
    seen: list[tuple[int, int]] = []
    nowcast_files(states, out, on_bytes=lambda phase, *bytes_: seen.append(bytes_) if phase == "nowcasting" else None)
    assert seen[0][0] == seen[0][1] // 3  # what was finished counts
    assert seen[-1][0] == seen[-1][1]
    for name, modified in kept.items():
        assert (out / "x8" / name).stat().st_mtime_ns == modified
    assert digests(out) == digests(tmp_path / "undisturbed")
    assert verify_manifest(out) == 3 * (LAYERS + 1)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_other_work_of_the_same_name_starts_afresh(tmp_path: Path, states: list[Path]) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        nowcast_files(states, out, on_bytes=Stop(2, KeyboardInterrupt()))
    before = partial_folder(out)
    with pytest.raises(KeyboardInterrupt):
        nowcast_files(states, out, rate=0.25, on_bytes=Stop(1, KeyboardInterrupt()))
    assert not before.exists()
    changed = load_file(next(states[3].glob("*.safetensors")))
    save_file({name: tensor + 1 for name, tensor in changed.items()}, next(states[3].glob("*.safetensors")))
    nowcast_files(states, out)
    assert not list(tmp_path.glob(".*"))
    nowcast_files(states, tmp_path / "undisturbed")
    assert digests(out) == digests(tmp_path / "undisturbed")


_KILLED = """
import sys, time
from pathlib import Path
from known_core.nowcast_files import nowcast_files

def on_bytes(phase, done, total):
    if phase == "nowcasting" and done > total // 2:
        print("half", flush=True)
        time.sleep(60)

nowcast_files([Path(path) for path in sys.argv[2:]], Path(sys.argv[1]), on_bytes=on_bytes)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_too(tmp_path: Path, states: list[Path]) -> None:
    out = tmp_path / "out"
    line = [sys.executable, "-c", _KILLED, *map(str, [out, *states])]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    kept = finished_shards(out)
    assert len(kept) == 3
    assert list(partial_folder(out).rglob(".*.tmp"))  # the fourth was under way
    nowcast_files(states, out)
    for name, modified in kept.items():
        assert (out / "x8" / name).stat().st_mtime_ns == modified
    assert verify_manifest(out) == 3 * (LAYERS + 1)


def test_an_error_of_the_inputs_leaves_nothing(tmp_path: Path, states: list[Path]) -> None:
    spoil(states[2])
    with pytest.raises(KnownError, match=r"\(nonfinite_weights\)"):
        nowcast_files(states, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["states"]


_HELPER = """
import sys
from pathlib import Path
from known_core.checkpoint import Checkpoint
from known_core.hypermodels import hypermodel_path, load_hypermodel
from known_core.nowcast import help_nowcast

known = load_hypermodel(hypermodel_path(None))
states = [Checkpoint(Path(path)) for path in sys.argv[3:]]
print(help_nowcast(states, known, [Path(sys.argv[1]), Path(sys.argv[2])], 0.5, turn=0, helpers=1))
"""


def help_with(outputs: Sequence[Path], states: Sequence[Path]) -> int:
    """The shards that a helper in another process wrote."""
    line = [sys.executable, "-c", _HELPER, *map(str, [*outputs, *states])]
    return int(subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout)


@pytest.mark.slow
def test_a_helper_writes_from_the_other_end(tmp_path: Path, states: list[Path]) -> None:
    known, checkpoints = hypermodel("known-v1"), [Checkpoint(state) for state in states]
    nowcast(checkpoints, known, [tmp_path / "alone" / name for name in ("x2", "x4")], 0.5)
    outputs = [tmp_path / "together" / name for name in ("x2", "x4")]
    written: list[int] = []

    def on_bytes(done: int, total: int) -> None:
        if done > total // 6 and not written:  # the second shard is under way
            written.append(help_with(outputs, states))

    nowcast(checkpoints, known, outputs, 0.5, on_bytes=on_bytes)
    assert written == [LAYERS - 1]
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")
    assert not list((tmp_path / "together").rglob(".*"))
    assert help_with(outputs, states) == 0  # too late: all is there
    assert help_with([tmp_path / "gone" / "x2", tmp_path / "gone" / "x4"], states) == 0
    assert not (tmp_path / "gone").exists()


def spoil(state: Path) -> None:
    file = sorted(state.glob("*.safetensors"))[4]
    tensors = load_file(file)
    next(iter(tensors.values()))[3, 3] = float("nan")
    save_file(tensors, file)


def test_workers_give_the_same_bytes(tmp_path: Path, states: list[Path]) -> None:
    seen: list[int] = []
    for workers in (1, 2):
        nowcast_files(
            states, tmp_path / f"{workers}", workers=workers,
            on_bytes=lambda phase, done, total: seen.append(done) if phase == "nowcasting" else None,
        )  # fmt: skip
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    manifests = [(tmp_path / f"{workers}" / "manifest.json").read_text() for workers in (1, 2)]
    assert manifests[0] == manifests[1]
    assert seen[-1] == LAYERS * 25 * 40 * 4


def test_an_error_of_a_worker_is_the_run_s_error(tmp_path: Path, states: list[Path]) -> None:
    spoil(states[2])
    with pytest.raises(KnownError, match=r"'layer.4.weight' in state-2.s.*\(nonfinite_weights\)"):
        nowcast_files(states, tmp_path / "out", workers=2)
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_ends_the_run_which_goes_on_after(tmp_path: Path, states: list[Path]) -> None:
    def kill(phase: str, done: int, total: int) -> None:
        for process in multiprocessing.active_children()[:1]:
            process.kill()

    with pytest.raises(KnownError, match=r"one of 2 processes .* was killed") as error:
        nowcast_files(states, tmp_path / "out", workers=2, on_bytes=kill)
    assert error.value.code == "worker_died"
    assert multiprocessing.active_children() == []
    nowcast_files(states, tmp_path / "out", workers=2)
    nowcast_files(states, tmp_path / "never-killed")
    assert digests(tmp_path / "out") == digests(tmp_path / "never-killed")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False)
    if mount.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path: Path) -> None:
    states = write_states(tmp_path / "states", width=30_000, sharded=False)  # 29 MB each
    before = [digests(state) for state in states]
    with small_disk(tmp_path / "disk", "20m") as disk:
        with pytest.raises(KnownError, match=r"86,400,000 bytes are to be written.*\(disk_full\)") as caught:
            nowcast_files(states, disk / "out")
        assert caught.value.retryable
        assert sum(path.stat().st_size for path in disk.rglob("*") if path.is_file()) == 0
    assert [digests(state) for state in states] == before


def test_a_disk_that_fills_up_keeps_finished_shards(tmp_path: Path) -> None:
    states = write_states(tmp_path / "states", width=5_000)  # six shards of 0.8 MB, three times
    with small_disk(tmp_path / "disk", "20m") as disk:

        def fill(phase: str, done: int, total: int) -> None:
            if phase == "nowcasting" and done > total // 2 and not (disk / "other").exists():
                (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 1_000_000))

        with pytest.raises(KnownError, match=r"no space is left.*\(disk_full\)"):
            nowcast_files(states, disk / "out", on_bytes=fill)
        kept = finished_shards(disk / "out")
        assert 3 <= len(kept) < LAYERS
        (disk / "other").unlink()
        nowcast_files(states, disk / "out")
        assert verify_manifest(disk / "out") == 3 * (LAYERS + 1)
        for name, modified in kept.items():
            assert (disk / "out" / "x8" / name).stat().st_mtime_ns == modified


def test_states_in_another_file_system(tmp_path: Path, states: list[Path]) -> None:
    memory = fsspec.filesystem("memory")
    for state in states:
        memory.put(str(state), f"/bucket/{state.name}", recursive=True)
    try:
        nowcast_files([f"memory://bucket/{state.name}" for state in states], tmp_path / "out")
        nowcast_files(states, tmp_path / "local")
        assert digests(tmp_path / "out") == digests(tmp_path / "local")
        assert (tmp_path / "out" / "manifest.json").read_text() == (tmp_path / "local" / "manifest.json").read_text()
        with pytest.raises(KnownError, match=r"memory://bucket/nowhere.*\((weights_missing|source_unreadable)\)"):
            Checkpoint("memory://bucket/nowhere")
        checkpoint = Checkpoint(f"memory://bucket/{states[0].name}")
        memory.pipe(f"/bucket/{states[0].name}/model-00001-of-00006.safetensors", b"cut")
        with pytest.raises(KnownError, match=r"\(source_unreadable\)"):
            checkpoint.read("layer.0.weight")
    finally:
        memory.rm("/bucket", recursive=True)


class Ranges(SimpleHTTPRequestHandler):
    """Files with byte ranges, as any object store serves them."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        begin, end = 0, len(data) - 1
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or end), end)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{end}/{len(data)}")
        self.send_header("Content-Length", str(end + 1 - begin))
        self.end_headers()
        self.wfile.write(data[begin : end + 1])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_states_behind_http(tmp_path: Path) -> None:
    states = write_states(tmp_path / "states", sharded=False)
    files = [state / "model.safetensors" for state in states]
    nowcast_files(files, tmp_path / "local")
    with serving(tmp_path / "states") as url:
        nowcast_files([f"{url}/{state.name}/model.safetensors" for state in states], tmp_path / "out")
        with pytest.raises(KnownError, match=rf"{url}/nowhere.safetensors.*\((source_unreadable|weights_missing)\)"):
            Checkpoint(f"{url}/nowhere.safetensors")
    assert digests(tmp_path / "out") == digests(tmp_path / "local")


def test_a_folder_of_links_as_in_huggingface_hub_s_cache(tmp_path: Path, states: list[Path]) -> None:
    linked = []
    for state in states:
        linked.append(tmp_path / "snapshots" / state.name)
        linked[-1].mkdir(parents=True)
        for file in state.iterdir():
            (linked[-1] / file.name).symlink_to(file)
    nowcast_files(linked, tmp_path / "out")
    nowcast_files(states, tmp_path / "plain")
    assert digests(tmp_path / "out") == digests(tmp_path / "plain")
    with pytest.raises(KnownError, match=r"\(not_regular_file\)"):
        Checkpoint(linked[0])  # as a job reads what a stranger uploaded


def test_a_url_of_an_unknown_kind() -> None:
    with pytest.raises(KnownError, match=r"carrier://pigeon/model.*\(source_unreadable\)"):
        Checkpoint("carrier://pigeon/model")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    paths: Sequence[Path] = write_states(tmp_path, sharded=False)
    checkpoint = Checkpoint(paths[0])
    os.truncate(paths[0] / "model.safetensors", 1_000)
    with pytest.raises(KnownError, match=r"ends at byte 1000.*\(source_unreadable\)"):
        checkpoint.read("layer.0.weight")
