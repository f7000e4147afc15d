"""Tokens that come with a request: sealed in the job record, opened by the worker, gone when the job has ended."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from app.jobs.settings import StoreSettings
from known_core.errors import KnownError

_KEY_FILE = "secret.key"


class Sealer:
    """Encrypts tokens, so that no store, log or backup holds one that can be used.

    Args:
        settings: ``secret_key``, the same for the API and all workers; None is a key file in the data folder.

    Raises:
        KnownError: ``secret_key_invalid``.
    """

    def __init__(self, settings: StoreSettings) -> None:
        key = settings.secret_key.get_secret_value().encode() if settings.secret_key else _key_file(settings.data)
        try:
            self._fernet = Fernet(key)
        except ValueError as error:
            raise KnownError(
                "secret_key_invalid",
                "KNOWN_SECRET_KEY is not a Fernet key",
                'Make one: python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())".',
            ) from error

    def seal(self, token: str) -> str:
        return self._fernet.encrypt(token.encode()).decode()

    def unseal(self, sealed: str) -> str:
        """Raises: KnownError ``secret_key_invalid`` where it was sealed with another key."""
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise KnownError(
                "secret_key_invalid",
                "the job's token was sealed with another key than this worker's",
                "Give the API and all workers the same KNOWN_SECRET_KEY.",
            ) from error


def _key_file(folder: Path) -> bytes:
    """The data folder's own key, for this user's eyes only."""
    path = folder / _KEY_FILE
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{_KEY_FILE}.")  # readable by this user alone
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(Fernet.generate_key())
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)  # whoever comes first wins; the others read what it wrote
    finally:
        Path(temporary).unlink()
    return path.read_bytes()
