"""The config of a checkpoint, read from a stranger's file: nothing in it may name code or ask for absurd sizes."""

import json
from collections.abc import Iterator
from typing import Any

from known_core.checkpoint.header import is_utf8
from known_core.checkpoint.source import Source
from known_core.errors import KnownError

ADAPTER_CONFIG = "adapter_config.json"  # of a PEFT adapter
_REFUSED_FIELDS = (  # each can name code on the Hub
    "trust_remote_code", "_attn_implementation_internal", "_attn_implementation", "attn_implementation",
    "custom_pipelines",
)  # fmt: skip
_MAX_JSON_BYTES = 1 << 20
_MAX_JSON_DEPTH = 64


def read_config(source: Source, given: dict[str, Any] | None) -> dict[str, Any]:
    """The model's config: config.json beside the weights, or the one given with the request.

    Raises:
        KnownError: ``config_missing``, ``config_invalid``, ``remote_code_refused``, ``config_field_refused``.
    """
    names = source.names()
    code = [name for name in names if name.endswith(".py")]
    if code:
        raise KnownError(
            "remote_code_refused", f"the checkpoint holds code: {code[0][:120]!r}", "Remove every .py file."
        )
    if "config.json" in names and given is not None:
        raise KnownError(
            "config_invalid", "the checkpoint has a config.json and the request a config", "Give one of them."
        ).at("/model/config")
    if given is None:
        if "config.json" not in names:
            raise KnownError(
                "config_missing",
                "the checkpoint has no config.json",
                'Zip the folder save_pretrained wrote, or name an architecture in the request: "config": '
                '{"architecture": "small-cnn", "num_classes": 10, ...}.',
            )
        return read_fields(source, "config.json", "config_invalid")
    check_fields(given, "the config", "config_invalid")
    return given


def read_fields(source: Source, name: str, code: str, max_bytes: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file, checked; ``code`` is the error of a file that holds none."""
    hint = f"Write {name} again with save_pretrained."
    try:
        with source.open(name) as stream:
            fields = json.loads(stream.read(max_bytes + 1))
    except (ValueError, RecursionError) as error:
        what = f"{name} is not JSON of at most {max_bytes} bytes: {type(error).__name__}"
        raise KnownError(code, what, hint) from error
    if not isinstance(fields, dict):
        raise KnownError(code, f"{name} holds a JSON {type(fields).__name__}, not an object", hint)
    check_fields(fields, name, code)
    return fields


def check_fields(fields: dict[str, Any], label: str, code: str) -> None:
    """Refuse, at any depth, what could make transformers run code, and what could not be written out again."""
    for key, value, depth in _walk(fields):
        if depth > _MAX_JSON_DEPTH:
            raise KnownError(code, f"{label} is nested more than {_MAX_JSON_DEPTH} deep at {key[:80]!r}", "Flatten it.")
        if not is_utf8(key) or (isinstance(value, str) and not is_utf8(value)):
            raise KnownError(code, f"{label} holds half a surrogate pair at {key[:80]!r}", "Write the text as UTF-8.")
        if key == "auto_map":
            raise KnownError(
                "remote_code_refused",
                f"{label} has auto_map, which points at code: {str(value)[:120]!r}",
                "Remove auto_map and use a class that transformers has itself.",
            )
        if key in _REFUSED_FIELDS and value is not None:
            raise KnownError(
                "config_field_refused",
                f"{label} sets {key} to {str(value)[:80]!r}",
                "Remove the field: it can run foreign code.",
            )


def check_sizes(fields: dict[str, Any], limit: int, label: str, code: str) -> None:
    """Bound what a constructor is told to make: labels, lists, images of any size, before there is a tensor."""
    total = 0
    for key, value, _ in _walk(fields):
        if type(value) is int:
            total += abs(value)
            if total > limit:
                raise KnownError(
                    code,
                    f"{label} is too large: its integers add up to more than {limit}; "
                    f"{key[:80]!r} is {str(value)[:40]}",
                    "Correct the size, or remove the field where it is not one.",
                )


def _walk(fields: dict[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """Each value inside a JSON object, its field's name and its depth; no recursion, as a stranger chose the depth."""
    pending: list[tuple[str, Any, int]] = [("", fields, 0)]
    while pending:
        name, value, depth = pending.pop()
        yield name, value, depth
        if isinstance(value, dict):
            pending += [(key, item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [(name, item, depth + 1) for item in value]
