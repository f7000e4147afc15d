"""What a machine runs out of, as errors that a user can act on."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from known_core.errors import KnownError, disk_full
from known_core.memory import ran_out_of_memory

_NO_SPACE = os.strerror(errno.ENOSPC)


@contextmanager
def said_clearly(folder: Path) -> Iterator[None]:
    """What a machine runs out of in here, as an error.

    Raises:
        KnownError: ``out_of_memory``, ``disk_full``, ``file_too_large``.
    """
    try:
        yield
    except Exception as error:
        lacking = _resource_lacking(error, folder)
        if lacking is None:
            raise
        raise lacking from error


def _resource_lacking(error: Exception, folder: Path) -> KnownError | None:
    """What the machine had too little of, where an error means that; libraries do not always say it by the type."""
    number = getattr(error, "errno", None)
    if number == errno.EFBIG:
        return KnownError(
            "file_too_large", f"a file below {folder} would be larger than a job may write",
            "Set output.max_shard_size; the operator sets the limit with KNOWN_TRAINER_FILE_BYTES.",
        )  # fmt: skip
    if number == errno.ENOSPC or (isinstance(error, SafetensorError) and _NO_SPACE in str(error)):
        return disk_full(folder)
    return out_of_memory(str(error) or type(error).__name__) if ran_out_of_memory(error) else None


def out_of_memory(said: str) -> KnownError:
    """The error where nothing more can be tried; ``said``: what the library said."""
    return KnownError(
        "out_of_memory", f"memory ran out, after all that could be tried with less: {said[:200]}",
        "Lower forgetting.max_length, use smaller images, or run on a larger GPU.",
    )  # fmt: skip
