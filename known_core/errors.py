"""One base exception for everything a user can put right."""

from functools import partial
from pathlib import Path


class KnownError(Exception):
    """An input or a run that cannot go on, said so that its user can act.

    Args:
        code: stable identifier for programs, for example ``header_truncated``.
        message: what is wrong, with the offending value.
        hint: what to do about it.
        pointer: JSON pointer (RFC 6901) into the request to the field at fault, where there is one.
        retryable: whether the same request may succeed later.
    """

    def __init__(
        self, code: str, message: str, hint: str = "", *, pointer: str | None = None, retryable: bool = False
    ) -> None:
        message = message.encode("utf-8", "backslashreplace").decode()  # a stranger's half surrogate is not UTF-8
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.pointer = pointer
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.message} ({self.code}). {self.hint}".rstrip()

    def __reduce__(self) -> "tuple[partial[KnownError], tuple[str, str, str]]":
        """Errors travel between processes; by default pickle would lose everything but the message."""
        rebuild = partial(KnownError, pointer=self.pointer, retryable=self.retryable)
        return rebuild, (self.code, self.message, self.hint)

    def at(self, pointer: str) -> "KnownError":
        """The same error, pointing at a field of the request."""
        self.pointer = self.pointer or pointer
        return self


class ProcessDied(Exception):
    """A process that did a part of the work was killed. Nothing is wrong with the work: it can be done again."""


def disk_full(folder: Path) -> KnownError:
    return KnownError(
        "disk_full", f"no space is left below {folder}", "Free space and run it again: it goes on where it was.",
        retryable=True,
    )  # fmt: skip
