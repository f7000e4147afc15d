"""What tus 1.0.0 says in headers (https://tus.io/protocols/resumable-upload), read and written."""

import base64
import binascii
import hashlib
from email.utils import formatdate

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.uploads.record import Upload
from known_core.errors import KnownError

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,expiration,checksum,termination"
CHUNK_TYPE = "application/offset+octet-stream"
_ALGORITHMS = ("sha256", "sha1")  # the protocol asks for sha1
_PREFIX = "/v1/uploads"


class TusHeaders:
    """Middleware: on uploads' routes, what the protocol wants of every request and response, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_PREFIX):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope)
        if override := given.get("x-http-method-override"):
            scope["method"] = override.upper()
        speaks_tus = "tus-resumable" in given or scope["method"] in ("OPTIONS", "PATCH")

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start" and speaks_tus:
                version = [(b"tus-resumable", VERSION.encode()), (b"tus-version", VERSION.encode())]
                message["headers"] = [*message["headers"], *version]
            await send(message)

        await self._app(scope, receive, send_with_version)


def check_version(version: str | None) -> None:
    """Raises: KnownError ``tus_version_unsupported``."""
    if version != VERSION:
        raise KnownError(
            "tus_version_unsupported",
            f"Tus-Resumable is {version[:20]!r}" if version else "there is no Tus-Resumable header",
            f"Speak tus {VERSION}.",
        )


def parse_metadata(text: str) -> dict[str, str]:
    """The pairs of an Upload-Metadata header: keys, and values in base64. Raises: KnownError ``tus_header_invalid``."""
    pairs: dict[str, str] = {}
    for item in text.split(",") if text.strip() else []:
        key, _, value = item.strip().partition(" ")
        if not key or not key.isascii() or key in pairs:
            raise _invalid("Upload-Metadata", item, "Its keys are unique, ASCII and not empty.")
        try:
            pairs[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise _invalid("Upload-Metadata", item, "Its values are UTF-8 in base64.") from error
    return pairs


class Checksum:
    """An Upload-Checksum header, and the digest to compare with it. Raises: KnownError ``tus_header_invalid``."""

    def __init__(self, header: str) -> None:
        algorithm, _, encoded = header.partition(" ")
        if algorithm not in _ALGORITHMS:
            raise _invalid("Upload-Checksum", header, f"Use one of {', '.join(_ALGORITHMS)}.")
        self._digest = hashlib.new(algorithm, usedforsecurity=False)
        try:
            self._wanted = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            self._wanted = b""
        if len(self._wanted) != self._digest.digest_size:
            raise _invalid("Upload-Checksum", header, f"Give the {algorithm} in base64.")

    def update(self, data: memoryview) -> None:
        self._digest.update(data)

    def check(self) -> None:
        """Raises: KnownError ``chunk_checksum_mismatch``."""
        if self._digest.digest() != self._wanted:
            raise KnownError(
                "chunk_checksum_mismatch",
                f"the bytes of this request have the {self._digest.name} {self._digest.hexdigest()}, "
                f"not {self._wanted.hex()}; they were thrown away",
                "Send them again.",
                retryable=True,
            )


def progress_headers(upload: Upload) -> dict[str, str]:
    """Where an upload is, and until when it waits."""
    headers = {"Upload-Offset": str(upload.offset)}
    if upload.expires_at is not None:
        headers["Upload-Expires"] = formatdate(upload.expires_at, usegmt=True)
    return headers


def _invalid(header: str, value: str, hint: str) -> KnownError:
    return KnownError("tus_header_invalid", f"{header} has {value[:120]!r}", hint)
