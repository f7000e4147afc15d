"""known_core.hub against the local Hub: the real client over real HTTP."""

import errno
import fcntl
import io
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from known_core.checkpoint.header import read_header
from known_core.checkpoint.reader import read_headers
from known_core.errors import KnownError
from known_core.hub import Hub, HubRef, hub_errors, needed_files
from known_core.hub import client as client_module
from tests.hub.server import Fault, File, LocalHub, Repo

CANARY = "hf_canarytokenthatmustnotleak"
WEIGHTS = save({"w": torch.arange(1000, dtype=torch.float32)})
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "README.md": b"# card"}
Make = Callable[..., Hub]


def ignore(done: int, total: int) -> None:
    """No progress is shown."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own waits between attempts, and ours, are short."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


@pytest.fixture(params=["xet", "no-xet"])
def xet(request: pytest.FixtureRequest, client: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "no-xet")


@pytest.fixture
def make(hub: LocalHub, client: object, tmp_path: Path) -> Make:
    """A Hub as a user, or as nobody; ``client`` takes the client online."""
    hub.users[CANARY] = "carol"

    def made(user: str | None = None, *, token: str | None = None, max_cache_bytes: int = 1 << 40) -> Hub:
        return Hub(hub.url, token or (f"hf_{user}" if user else None), tmp_path / "cache", max_cache_bytes)

    return made


@pytest.fixture
def repo(hub: LocalHub) -> Repo:
    return hub.add("models", "alice/m", FILES)


def bodies(hub: LocalHub) -> list[str]:
    return [line for line in hub.requests if line.startswith("GET") and ("/resolve/" in line or "/storage/" in line)]


# references


def test_a_reference_has_a_label_for_people() -> None:
    assert HubRef("gpt2", "v1.0").label == "gpt2@v1.0"
    assert HubRef("alice/m").label == "alice/m"
    assert HubRef("alice/m", "abcdef12" + "0" * 32).label == "alice/m@abcdef12"


@pytest.mark.parametrize(
    "repo_id", ["", "../x", "a/../x", "a/b/c", "a//b", "/a", "a/", "a/b\n", "a b/c", "a--b/c", "x" * 97, "hub:a/b"]
)
def test_a_bad_id_is_refused(repo_id: str) -> None:
    with pytest.raises(KnownError) as caught:
        HubRef(repo_id)
    assert caught.value.code == "repo_id_invalid"


@pytest.mark.parametrize("revision", ["", "../..", "a b", "x\n", "a:b", "x" * 256])
def test_a_bad_revision_is_refused(revision: str) -> None:
    with pytest.raises(KnownError) as caught:
        HubRef("alice/m", revision)
    assert caught.value.code == "hub_revision_not_found"


def test_a_revision_becomes_a_commit(make: Make, repo: Repo) -> None:
    old = repo.refs["main"]
    repo.refs["v1"] = old
    repo.commit("main", "second", {"config.json": File(b"2")})
    repo.commit("refs/pr/1", "change", {"config.json": File(b"3")}, old)
    hub = make()
    for revision, ref in ((None, "main"), ("main", "main"), ("v1", "v1"), ("refs/pr/1", "refs/pr/1")):
        assert hub.resolve(HubRef("alice/m", revision)) == HubRef("alice/m", repo.refs[ref])
    for revision in (old, old[:8]):
        assert hub.resolve(HubRef("alice/m", revision)) == HubRef("alice/m", old)


@pytest.mark.parametrize(("kind", "kinds"), [("model", "models"), ("dataset", "datasets")])
def test_a_renamed_repository(make: Make, hub: LocalHub, tmp_path: Path, kind: Any, kinds: str) -> None:
    hub.add(kinds, "alice/old", FILES)
    hub.rename(kinds, "alice/old", "alice/new")
    ref = make("alice").resolve(HubRef("alice/old", kind=kind))
    assert ref.repo_id == "alice/new"
    old = HubRef("alice/old", ref.revision, kind)
    make("alice").fetch(old, tmp_path / "job", ["model.safetensors"], ignore)
    assert (tmp_path / "job" / "model.safetensors").read_bytes() == WEIGHTS


def test_an_unresolved_reference_is_a_mistake(make: Make) -> None:
    with pytest.raises(ValueError, match="resolved"):
        make().source(HubRef("alice/m"))


# what is needed


def test_needed_files_of_a_model() -> None:
    kept = {"README.md", "config.json", "tokenizer.json", "generation_config.json", "picture.png", "sub/notes.txt",
            "vocab.xml", "model.safetensors", "adapter_model.safetensors", "modeling.py"}  # fmt: skip
    left = {".gitattributes", "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack",
            "rust_model.ot", "model.onnx", "model.gguf", "model.tflite", "a.pt", "a.pth", "a.ckpt", "a.pkl",
            "m.mlmodel", "openvino_model.xml", "openvino_model.bin", "onnx/config.json", "coreml/x/weights.txt",
            "sub/model.safetensors", "model.fp16.safetensors", "model.fp16.safetensors.index.json"}  # fmt: skip
    assert set(needed_files(kept | left, "model")) == kept
    assert needed_files(["train.py", ".gitattributes", "a.bin"], "dataset") == ["a.bin", "train.py"]
    assert needed_files(["config.json", "unet/x.safetensors", "unet/x.bin"], "model") == ["config.json"]
    assert needed_files(["a.safetensors", "b.safetensors"], "model") == ["a.safetensors", "b.safetensors"]


def test_shards_are_those_of_the_index(make: Make, hub: LocalHub) -> None:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = json.dumps({"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    files = dict.fromkeys(["consolidated.safetensors", "model.safetensors", *shards], WEIGHTS)
    hub.add("models", "alice/m", {**files, "model.safetensors.index.json": index, "adapter_model.safetensors": b""})
    source = make().source(make().resolve(HubRef("alice/m")))
    assert source.names() == ["adapter_model.safetensors", *shards, "model.safetensors.index.json"]


def test_only_pickles_are_refused(make: Make, hub: LocalHub) -> None:
    hub.add("models", "alice/m", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04", "x.ckpt": b""})
    ref = make().resolve(HubRef("alice/m"))
    with pytest.raises(KnownError, match=r"refs/pr/1.*spaces/safetensors/convert") as caught:
        make().source(ref)
    assert caught.value.code == "unsafe_format"
    assert bodies(hub) == []


def test_the_listing_comes_in_pages(client: object, tmp_path: Path) -> None:
    with LocalHub({}, page_entries=3) as hub:
        files = {f"data/{number}.txt": b"x" * number for number in range(10)}
        hub.add("datasets", "alice/d", files)
        reader = Hub(hub.url, None, tmp_path / "cache", 1 << 30)
        source = reader.source(reader.resolve(HubRef("alice/d", kind="dataset")))
        assert source.names() == sorted(files)
        assert source.size("data/7.txt") == 7
        assert sum("/tree/" in line for line in hub.requests) == 4


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a\\b", "a//b"])
def test_a_name_that_leads_elsewhere_is_refused(make: Make, hub: LocalHub, name: str) -> None:
    hub.add("datasets", "alice/d", {name: b"x"})
    with pytest.raises(KnownError) as caught:
        make().source(make().resolve(HubRef("alice/d", kind="dataset")))
    assert caught.value.code == "archive_path_invalid"


# looking into files


@pytest.mark.usefixtures("xet")
@pytest.mark.parametrize("redirects", [False, True])
def test_a_header_costs_kilobytes(make: Make, hub: LocalHub, redirects: bool) -> None:
    hub.redirects_lfs = redirects
    big = save({"w": torch.zeros(5_000_000), "v": torch.ones(3)})
    hub.add("models", "alice/m", {"model.safetensors": big, "config.json": b'{"a": 1}'}, private=True)
    source = make("alice").source(make("alice").resolve(HubRef("alice/m")))
    assert set(read_headers(source)["model.safetensors"].tensors) == {"w", "v"}
    with source.open("config.json") as stream:
        assert json.load(stream) == {"a": 1}
    assert hub.body_bytes < 300_000
    with source.open("model.safetensors") as stream:
        header = read_header(stream, len(big), "model.safetensors")
        stream.seek(-12, io.SEEK_END)
        assert stream.read() == big[-12:]
        stream.seek(header.tensors["v"].begin)
        assert stream.read(12) == torch.ones(3).numpy().tobytes()
        assert stream.read(0) == b""
        stream.seek(len(big))
        assert stream.read() == b""
        stream.seek(1000)
        before = len(hub.requests)
        assert stream.read() == big[1000:]
        assert len(hub.requests) - before <= 2 * (1 + redirects)


def test_a_parquet_footer_costs_kilobytes(make: Make, hub: LocalHub) -> None:
    table = pa.table({"x": torch.randn(4_000_000).numpy()})
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="none")
    hub.add("datasets", "alice/d", {"train.parquet": stream.getvalue()})
    source = make().source(make().resolve(HubRef("alice/d", kind="dataset")))
    with source.open("train.parquet") as opened:
        assert pq.ParquetFile(opened).metadata.num_rows == 4_000_000
    assert hub.body_bytes < 600_000


def test_a_range_read_goes_on_after_a_fault(make: Make, hub: LocalHub) -> None:
    data = bytes(range(256)) * 50_000
    hub.add("datasets", "alice/d", {"a.zip": data})
    source = make().source(make().resolve(HubRef("alice/d", kind="dataset")))
    hub.faults += [Fault("GET", "/resolve/", 503), Fault("GET", "/resolve/", cut_after=1000)]
    with source.open("a.zip") as stream:
        assert stream.read(2_000_000) == data[:2_000_000]
    assert [fault.times for fault in hub.faults] == [0, 0]


def test_a_file_that_is_not_there(make: Make, repo: Repo, tmp_path: Path) -> None:
    ref = make().resolve(HubRef("alice/m"))
    source = make().source(ref)
    for call in (
        lambda: source.open("x"),
        lambda: source.size("x"),
        lambda: make().fetch(ref, tmp_path, ["x"], ignore),
    ):
        with pytest.raises(KnownError) as caught:
            call()
        assert caught.value.code == "hub_file_missing"


# fetching


@pytest.mark.usefixtures("xet")
@pytest.mark.parametrize("redirects", [False, True])
def test_only_what_is_named_is_fetched_and_once(make: Make, hub: LocalHub, tmp_path: Path, redirects: bool) -> None:
    hub.redirects_lfs = redirects
    hub.add("models", "alice/m", {**FILES, "pytorch_model.bin": b"pickle", "a/b c.txt": "ü".encode()})
    alice = make("alice")
    ref = alice.resolve(HubRef("alice/m"))
    names = alice.source(ref).names()
    seen: list[tuple[int, int]] = []
    alice.fetch(ref, tmp_path / "job", names, lambda done, total: seen.append((done, total)))
    for name in names:
        file = tmp_path / "job" / name
        assert file.is_file()
        assert not file.is_symlink()
    assert (tmp_path / "job" / "model.safetensors").read_bytes() == WEIGHTS
    assert (tmp_path / "job" / "a" / "b c.txt").read_text() == "ü"
    total = len(WEIGHTS) + len("{}# card") + 2
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
    assert not any("pytorch_model" in line for line in hub.requests)
    before = bodies(hub)
    make("bob").fetch(ref, tmp_path / "job", names, ignore)  # over what is there, which are links to the cache
    make("bob").fetch(ref, tmp_path / "other", names, ignore)
    assert bodies(hub) == before
    assert (tmp_path / "other" / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.usefixtures("xet")
def test_faults_that_pass(make: Make, hub: LocalHub, tmp_path: Path) -> None:
    data = bytes(range(256)) * 100_000
    hub.add("datasets", "alice/d", {"a.zip": data, "b.txt": b"b"})
    hub.faults += [
        Fault("GET", "/api/datasets/alice/d/revision/main", 502),
        Fault("GET", "/auth-check", 429),
        Fault("GET", "/tree/", 500),
        Fault("HEAD", "/resolve/.*zip", 503),
        Fault("GET", "/resolve/.*zip", 429),
        Fault("GET", "/resolve/.*zip", 503),
        Fault("GET", "/resolve/.*zip", cut_after=11_000_000),
        Fault("GET", "/resolve/.*txt", 504, times=2),
    ]
    ref = make().resolve(HubRef("alice/d", "main", "dataset"))
    make().fetch(ref, tmp_path / "job", ["a.zip", "b.txt"], ignore)
    assert (tmp_path / "job" / "a.zip").read_bytes() == data
    assert [fault.times for fault in hub.faults] == [0] * len(hub.faults)
    assert hub.body_bytes < 2 * len(data)  # the cut download went on where it ended


def test_what_arrived_is_kept_when_a_fetch_fails(make: Make, hub: LocalHub, tmp_path: Path) -> None:
    hub.add("datasets", "alice/d", {"a.txt": b"a", "b.txt": b"b"})
    ref = make().resolve(HubRef("alice/d", kind="dataset"))
    make().fetch(ref, tmp_path / "job", ["a.txt"], ignore)
    hub.faults.append(Fault("GET", "/resolve/.*b.txt", 500, times=100))
    with pytest.raises(KnownError) as caught:
        make().fetch(ref, tmp_path / "job", ["a.txt", "b.txt"], ignore)
    assert (caught.value.code, caught.value.retryable) == ("hub_unreachable", True)
    hub.faults.clear()
    before = len(bodies(hub))
    make().fetch(ref, tmp_path / "job", ["a.txt", "b.txt"], ignore)
    assert len(bodies(hub)) - before == 1


def test_wrong_bytes_are_refused(make: Make, hub: LocalHub, repo: Repo, tmp_path: Path) -> None:
    ref = make().resolve(HubRef("alice/m"))
    for name, data in FILES.items():
        hub.served[File(data).sha256] = b"x" * len(data)
        with pytest.raises(KnownError, match=name) as caught:
            make().fetch(ref, tmp_path / "job", [name], ignore)
        assert caught.value.code == "checksum_mismatch"
        assert not (tmp_path / "job" / name).exists()
    hub.served.clear()
    make().fetch(ref, tmp_path / "job", list(FILES), ignore)
    assert (tmp_path / "job" / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_changed_in_the_cache_is_fetched_again(make: Make, repo: Repo, tmp_path: Path) -> None:
    ref = make().resolve(HubRef("alice/m"))
    make().source(ref).open("config.json").close()
    (cached,) = (tmp_path / "cache").rglob("config.json")
    cached.resolve().write_bytes(b"[]")
    with pytest.raises(KnownError):
        make().source(ref).open("config.json")
    with make().source(ref).open("config.json") as stream:
        assert stream.read() == b"{}"


def test_progress_can_stop_a_fetch(make: Make, hub: LocalHub, tmp_path: Path) -> None:
    hub.add("datasets", "alice/d", {f"{number}.txt": b"x" for number in range(20)})
    ref = make().resolve(HubRef("alice/d", kind="dataset"))

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        make().fetch(ref, tmp_path / "job", [f"{number}.txt" for number in range(20)], stop)
    assert list((tmp_path / "cache").rglob("*.incomplete")) == []


def test_a_full_disk_is_said(make: Make, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = make().resolve(HubRef("alice/m"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(KnownError, match="1,000 are free") as caught:
            make().fetch(ref, tmp_path / "job", list(FILES), ignore)
    assert (caught.value.code, caught.value.retryable) == ("disk_full", True)

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(client_module, "link_or_copy", full)
    with pytest.raises(KnownError) as caught:
        make().fetch(ref, tmp_path / "job", list(FILES), ignore)
    assert (caught.value.code, caught.value.retryable) == ("disk_full", True)


# errors


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(KnownError) as caught:
        call()
    assert "alice/" in caught.value.message
    assert caught.value.hint
    assert caught.value.retryable == (caught.value.code in ("hub_unreachable", "hub_rate_limited"))
    return caught.value.code


def test_each_refusal_has_its_code(make: Make, hub: LocalHub, tmp_path: Path) -> None:
    hub.add("models", "alice/secret", FILES, private=True)
    gated = hub.add("models", "alice/gated", FILES, gated=True)
    hub.add("models", "alice/m", FILES)
    for user in (None, "bob"):
        assert code_of(lambda user=user: make(user).resolve(HubRef("alice/secret"))) == "hub_not_found"  # type: ignore[misc]
        assert code_of(lambda user=user: make(user).resolve(HubRef("alice/nowhere"))) == "hub_not_found"  # type: ignore[misc]
    assert code_of(lambda: make("mallory").resolve(HubRef("alice/m"))) == "hub_token_refused"
    assert code_of(lambda: make().resolve(HubRef("alice/m", "v9"))) == "hub_revision_not_found"
    assert code_of(lambda: make().source(HubRef("alice/m", "f" * 40))) == "hub_revision_not_found"
    ref = make().resolve(HubRef("alice/gated"))
    for user in (None, "bob"):
        assert code_of(lambda user=user: make(user).source(ref)) == "hub_gated"  # type: ignore[misc]
    gated.granted.add("bob")
    make("bob").fetch(ref, tmp_path / "bob", list(FILES), ignore)
    # that the files are in the shared cache opens nothing to others
    assert code_of(lambda: make("alice-not").fetch(ref, tmp_path / "x", list(FILES), ignore)) == "hub_token_refused"
    assert code_of(lambda: make().fetch(ref, tmp_path / "x", list(FILES), ignore)) == "hub_gated"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "hub_forbidden"), (404, "hub_not_found"), (408, "hub_unreachable"), (409, "hub_refused"),
     (429, "hub_rate_limited"), (500, "hub_unreachable"), (503, "hub_unreachable")],
)  # fmt: skip
def test_each_status_has_its_code(make: Make, hub: LocalHub, repo: Repo, status: int, code: str) -> None:
    ref = make().resolve(HubRef("alice/m"))
    hub.faults.append(Fault("GET", "/api/models", status, times=100))
    assert code_of(lambda: make().resolve(HubRef("alice/m"))) == code
    assert code_of(lambda: make().source(ref)) == code
    hub.faults[:] = [Fault(method, "/resolve/", status, times=1000) for method in ("GET", "HEAD")]
    assert code_of(lambda: make().source(ref).open("config.json")) == code
    hub.faults[:] = [Fault("GET", "/resolve/", status, times=1000)]
    assert code_of(lambda: make().source(ref).open("README.md")) == code


def test_nobody_answers(client: object, tmp_path: Path) -> None:
    hub = Hub("http://127.0.0.1:9", None, tmp_path / "cache", 1 << 30)
    assert code_of(lambda: hub.resolve(HubRef("alice/m"))) == "hub_unreachable"
    assert code_of(lambda: hub.source(HubRef("alice/m", "0" * 40))) == "hub_unreachable"


def test_offline_is_said_at_once(make: Make, repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make().source(make().resolve(HubRef("alice/m")))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert code_of(lambda: make().resolve(HubRef("alice/m"))) == "hub_offline"
    assert code_of(lambda: source.open("config.json")) == "hub_offline"


def test_a_file_system_s_errors_are_not_the_hub_s() -> None:
    with pytest.raises(PermissionError), hub_errors(HubRef("alice/m")):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_token_never_leaks(
    make: Make, hub: LocalHub, repo: Repo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    carol = make(token=CANARY)
    ref = carol.resolve(HubRef("alice/m"))
    said = [repr(carol), str(carol), repr(carol.source(ref))]
    hub.add("models", "alice/secret", FILES, private=True)
    hub.faults += [Fault("GET", "/resolve/.*README", status, message=f"your token {CANARY}") for status in (409, 403)]
    hub.faults.append(Fault("HEAD", "/resolve/", 500, times=100))
    calls: list[Callable[[], object]] = [
        lambda: carol.resolve(HubRef("alice/secret")),
        lambda: carol.fetch(ref, tmp_path / "job", ["README.md"], ignore),
        lambda: carol.source(ref).open("config.json"),
    ]
    for call in calls:
        with pytest.raises(KnownError) as caught:
            call()
        said += [*traceback.format_exception(caught.value), repr(caught.value.args), str(pickle.dumps(caught.value))]
    hub.faults[:] = [Fault("GET", "/api/", 409, message=f"your token {CANARY}")]
    with pytest.raises(KnownError, match="your token") as caught:
        carol.resolve(ref)
    said += traceback.format_exception(caught.value)
    assert not any("canary" in text for text in [*said, caplog.text])


def test_no_stored_token_is_used(make: Make, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    hub.add("models", "alice/secret", FILES, private=True)
    assert code_of(lambda: make().resolve(HubRef("alice/secret"))) == "hub_not_found"


# the cache


@pytest.fixture
def cached(make: Make, hub: LocalHub, tmp_path: Path) -> list[HubRef]:
    """Three repositories in the cache, of 100 kB each, used one after the other."""
    refs = []
    for number in range(3):
        hub.add("datasets", f"alice/d{number}", {"a.zip": bytes([number]) * 100_000})
        ref = make().resolve(HubRef(f"alice/d{number}", kind="dataset"))
        make().fetch(ref, tmp_path / "job", ["a.zip"], ignore)
        os.utime(make()._snapshot(ref), (number, number))
        refs.append(ref)
    return refs


def left(hub: Hub, refs: list[HubRef]) -> list[bool]:
    return [(hub._snapshot(ref) / "a.zip").exists() for ref in refs]


def test_trim_deletes_what_was_used_least_recently(make: Make, cached: list[HubRef], tmp_path: Path) -> None:
    make().trim()
    assert left(make(), cached) == [True, True, True]
    make().fetch(cached[0], tmp_path / "again", ["a.zip"], ignore)  # now the latest
    make(max_cache_bytes=250_000).trim()
    assert left(make(), cached) == [True, False, True]
    (tmp_path / "cache" / "datasets--alice--d0" / "blobs" / "x.incomplete").write_bytes(b"left by a kill")
    make(max_cache_bytes=0).trim()
    assert left(make(), cached) == [False, False, False]
    assert (tmp_path / "again" / "a.zip").read_bytes() == bytes(100_000)
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_fetch_trims(make: Make, cached: list[HubRef], tmp_path: Path) -> None:
    make(max_cache_bytes=150_000).fetch(cached[1], tmp_path / "again", ["a.zip"], ignore)
    assert left(make(), cached) == [False, True, False]


def hold(hub: Hub, ref: HubRef, ready: Any, done: Any) -> None:
    with hub._in_use(ref):
        ready.set()
        done.wait(60)


def test_trim_leaves_what_another_process_uses(make: Make, cached: list[HubRef]) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(make(), cached[0], ready, done))
    holder.start()
    try:
        assert ready.wait(60)
        make(max_cache_bytes=0).trim()
        assert left(make(), cached) == [True, False, False]
    finally:
        done.set()
        holder.join()
    make(max_cache_bytes=0).trim()
    assert left(make(), cached) == [False, False, False]


def test_fetches_and_trims_at_once(make: Make, cached: list[HubRef], tmp_path: Path) -> None:
    def job(number: int) -> None:
        for turn in range(5):
            ref, target = cached[(number + turn) % 3], tmp_path / f"{number}-{turn}"
            make(max_cache_bytes=0).fetch(ref, target, ["a.zip"], ignore)
            assert (target / "a.zip").read_bytes() == bytes([int(ref.repo_id[-1])]) * 100_000

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(job, number) for number in range(6)]:
            done.result()
    make(max_cache_bytes=0).trim()
    assert left(make(), cached) == [False, False, False]


def test_one_trims_at_a_time(make: Make, cached: list[HubRef]) -> None:
    with make()._lock("trim", fcntl.LOCK_EX):
        make(max_cache_bytes=0).trim()
    assert left(make(), cached) == [True, True, True]


def test_revisions_of_one_repository_go_one_by_one(make: Make, hub: LocalHub, tmp_path: Path) -> None:
    repo = hub.add("datasets", "alice/d", {"a.zip": b"a" * 100_000, "shared.zip": b"s" * 100_000})
    first = HubRef("alice/d", repo.refs["main"], "dataset")
    second = HubRef("alice/d", repo.commit("main", "2", {"a.zip": File(b"b" * 100_000, lfs=True)}).oid, "dataset")
    for age, ref in ((1, first), (2, second)):
        make().fetch(ref, tmp_path / "job", ["a.zip", "shared.zip"], ignore)
        os.utime(make()._snapshot(ref), (age, age))
    make(max_cache_bytes=250_000).trim()
    assert left(make(), [first, second]) == [False, True]
    before = bodies(hub)
    make().fetch(second, tmp_path / "job", ["a.zip", "shared.zip"], ignore)
    assert bodies(hub) == before
