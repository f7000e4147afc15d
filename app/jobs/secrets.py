"""The service's secret keys, and what is done with them: tokens that come with a request are sealed in the job record,
opened by the worker, and gone when the job has ended."""

import base64
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.jobs.settings import StoreSettings
from known_core.errors import KnownError

_KEY_FILE = "secret.key"


class SecretKeys:
    """The service's secret keys: the first one is used for what is new, all of them open what there is.

    Args:
        settings: ``secret_key``, the same for the API and all workers; None is a key file in the data folder.

    Raises:
        KnownError: ``secret_key_invalid``.
    """

    def __init__(self, settings: StoreSettings) -> None:
        given = settings.secret_key.get_secret_value().encode() if settings.secret_key else _key_file(settings.data)
        self._keys = [key.strip() for key in given.split(b",")]
        try:
            self.fernet = MultiFernet([Fernet(key) for key in self._keys])
        except ValueError as error:
            raise KnownError(
                "secret_key_invalid",
                "KNOWN_SECRET_KEY is not a Fernet key, or several with commas between them",
                'Make one: python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())".',
            ) from error

    def derived(self, purpose: str) -> dict[str, bytes]:
        """Keys of 32 bytes for one purpose (HKDF, RFC 5869), by ids that tell nothing of them, in order."""
        found = {}
        for key in self._keys:
            hkdf = HKDF(algorithm=SHA256(), length=36, salt=None, info=f"known: {purpose}".encode())
            material = hkdf.derive(base64.urlsafe_b64decode(key))
            found[material[32:].hex()] = material[:32]
        return found


class Sealer:
    """Encrypts tokens, so that no store, log or backup holds one that can be used. Raises: as SecretKeys."""

    def __init__(self, settings: StoreSettings) -> None:
        self._fernet = SecretKeys(settings).fernet

    def seal(self, token: str) -> str:
        return self._fernet.encrypt(token.encode()).decode()

    def unseal(self, sealed: str) -> str:
        """Raises: KnownError ``secret_key_invalid`` where it was sealed with a key that is not among these."""
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
