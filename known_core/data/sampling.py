from typing import Any


def sample_names(*a: Any, **k: Any) -> tuple[list[str], dict[str, Any]]:
    raise NotImplementedError


def sample_tables(*a: Any, **k: Any) -> dict[str, Any]:
    raise NotImplementedError
