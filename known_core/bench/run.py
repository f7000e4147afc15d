"""The `known bench transfer` command: which protocols and hyper-models, and the files that come out."""

import importlib.util
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import known_core
from known_core.bench.candidates import Bench
from known_core.bench.protocols import PROTOCOLS, Protocol
from known_core.bench.summary import plot, render, summarise
from known_core.bench.transfer import measure_protocol
from known_core.errors import KnownError
from known_core.files import atomic_path, sha256_file, sha256_tree, write_json
from known_core.hypermodels import hypermodel_path, load_hypermodel, shipped_hypermodels


def run_transfer(
    out: Path,
    *,
    protocols: Sequence[str] | None,
    tier: str,
    data: Sequence[str],
    hypermodels: Sequence[str] | None,
    reference: Path | None,
    wnn: Path | None,
    methods: str,
    workers: int,
    command: str,
    on_units: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> str:
    """Measure protocols and write ``out/transfer.json``, ``.md`` and ``.svg``; finished work stays in ``out/work``.

    The files are written again after each protocol, so an interrupted run leaves those it finished.

    Returns:
        The Markdown.

    Raises:
        KnownError: ``extra_missing``, ``option_invalid``, ``hypermodel_unknown``, ``hypermodel_invalid``,
            ``sample_missing``, ``dataset_unusable``.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise KnownError("extra_missing", "scikit-learn is not installed", "pip install 'known[bench]'")
    chosen = _protocols(protocols, tier)
    paths = dict(_named("data", item) for item in data)
    for protocol in chosen:
        if protocol.data == "cifar10" and not paths.get("cifar10", Path()).is_file():
            raise KnownError(
                "sample_missing",
                f"{protocol.name} needs CIFAR-10 as an imagefolder zip (train/<class>/<image>)",
                "Give it with --data cifar10=FILE, or choose other protocols with --protocol.",
            )
    known = _hypermodels(hypermodels, reference, wnn)
    try:
        wanted = re.compile(methods)
    except re.error as error:
        raise KnownError("option_invalid", f"methods is {methods!r}: {error}", "Give a regular expression.") from error
    bench = Bench(out / "work", paths, known)
    hashes = {name: sha256_tree(path) if path.is_dir() else sha256_file(path) for name, path in known.items()}
    results: dict[str, Any] = {
        "command": command,
        "version": known_core.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.processor() or platform.machine()}, cuda {torch.cuda.is_available()}",
        "hypermodels": hashes,
        "protocols": [],
    }
    for protocol in chosen:
        rows = measure_protocol(
            bench,
            protocol,
            workers=workers,
            methods=lambda name: bool(wanted.search(name)),
            on_units=lambda done, total, name=protocol.name: on_units(name, done, total),  # type: ignore[misc]
        )
        results["protocols"].append(summarise(protocol, rows, list(known)) | {"accuracies": rows})
        write_json(out / "transfer.json", results)
        text = render(results)
        with atomic_path(out / "transfer.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        with atomic_path(out / "transfer.svg") as temporary:
            plot(results, temporary)
    return text


def _protocols(names: Sequence[str] | None, tier: str) -> list[Protocol]:
    tiers = {protocol.tier for protocol in PROTOCOLS.values()}
    if tier not in tiers:
        raise KnownError("option_invalid", f"tier is {tier!r}", f"Choose from {sorted(tiers)}.")
    for name in names or ():
        if name not in PROTOCOLS:
            raise KnownError("option_invalid", f"there is no protocol {name!r}", f"Choose from {list(PROTOCOLS)}.")
    return [PROTOCOLS[name] for name in names or PROTOCOLS if names or PROTOCOLS[name].tier == tier]


def _hypermodels(names: Sequence[str] | None, reference: Path | None, wnn: Path | None) -> dict[str, Path]:
    known: dict[str, Path] = {}
    for item in names if names is not None else reversed(shipped_hypermodels()):
        if "=" in item:
            name, path = _named("hypermodel", item)
            known[name] = path
        else:
            known[item] = hypermodel_path(item)
    for name, folder in (("authors", reference), ("wnn", wnn)):
        if folder is not None:
            known[name] = folder
    for name, path in known.items():
        if not path.exists():
            raise KnownError("hypermodel_invalid", f"{name}: there is nothing at {path}", "Give a file or a folder.")
        load_hypermodel(path)  # a file that cannot be read is said now, not after hours of training
    return known


def _named(option: str, item: str) -> tuple[str, Path]:
    name, separator, path = item.partition("=")
    if not separator or not name or not path:
        raise KnownError("option_invalid", f"--{option} is {item!r}", "Give NAME=PATH.")
    return name, Path(path)
