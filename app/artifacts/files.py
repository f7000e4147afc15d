"""Files over HTTP: Range, If-Range and If-None-Match (RFC 9110), with the sha256 as ETag."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastapi import HTTPException, Response
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

if TYPE_CHECKING:
    from app.artifacts.service import StoredFile

_RANGES = re.compile(
    r"bytes=\s*(?:[0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18})(?:\s*,\s*(?:[0-9]{1,18}-[0-9]{0,18}|-[0-9]{1,18}))*"
)
_FOREVER = "private, max-age=31536000, immutable"  # a job's files never change


class _File(FileResponse):
    """Starlette's, with larger pieces, and without a Range that RFC 9110 wants ignored."""

    chunk_size = 1 << 20  # bytes
    honours_range = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.honours_range:
            headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
            scope = {**scope, "headers": headers}
        await super().__call__(scope, receive, send)


def file_response(
    path: Path, sha256: str | None, range_: str | None, if_range: str | None, if_none_match: str | None
) -> Response:
    """The answer to GET or HEAD of a file.

    Args:
        sha256: its ETag; None where it has none.
        range_: the Range header. One that is malformed, or of other units, is ignored.
        if_range: the If-Range header. One that is not the ETag makes the range be ignored.
        if_none_match: the If-None-Match header.

    Raises:
        HTTPException: 416, where no byte of the range is there.
    """
    headers = {"ETag": f'"{sha256}"', "Cache-Control": _FOREVER} if sha256 else {}
    if sha256 and if_none_match and _matches(if_none_match, sha256):
        return Response(status_code=304, headers=headers)
    response = _File(path, media_type="application/octet-stream", filename=path.name, headers=headers)
    response.headers["X-Content-Type-Options"] = "nosniff"
    same = if_range is None or if_range == f'"{sha256}"'
    response.honours_range = range_ is not None and same and _is_well_formed(range_)
    if response.honours_range and range_:
        _check_satisfiable(range_, path.stat().st_size)
    return response


def stored_response(
    file: "StoredFile", method: str, range_: str | None, if_range: str | None, if_none_match: str | None
) -> Response:
    """As file_response, of a file in the bucket: the answer to GET is where it is."""
    headers = {"ETag": f'"{file.sha256}"', "Cache-Control": _FOREVER, "Accept-Ranges": "bytes"}
    if if_none_match and _matches(if_none_match, file.sha256):
        return Response(status_code=304, headers=headers)
    if range_ and _is_well_formed(range_) and if_range in (None, headers["ETag"]):
        _check_satisfiable(range_, file.bytes)
    if method == "HEAD":
        return Response(media_type="application/octet-stream", headers={**headers, "Content-Length": str(file.bytes)})
    return Response(status_code=307, headers={"Location": file.url, "Cache-Control": "no-store"})


def content_response(
    content: bytes, media_type: str, sha256: str | None, if_none_match: str | None, headers: Mapping[str, str]
) -> Response:
    """The answer to GET of what is drawn from a job's files: a later version of known may draw it better.

    Args:
        sha256: its ETag.
        if_none_match: the If-None-Match header.
    """
    headers = {**headers, "ETag": f'"{sha256}"', "Cache-Control": "private, no-cache"}
    if sha256 and if_none_match and _matches(if_none_match, sha256):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


def wanted(accept: str) -> Literal["json", "html"]:
    """What an Accept header (RFC 9110, 12.5.1) asks for: HTML where it says so and likes it more than JSON."""
    liked = {"text/html": 0.0, "application/json": 0.0}
    for part in accept.lower().split(","):
        media_type, *parameters = (piece.strip() for piece in part.split(";"))
        weights = [parameter.partition("=")[2] for parameter in parameters if parameter.startswith("q=")]
        if media_type in liked:
            liked[media_type] = _weight(weights[0]) if weights else 1.0
    return "html" if liked["text/html"] > liked["application/json"] else "json"


def _weight(text: str) -> float:
    return float(text) if re.fullmatch(r"[01](\.[0-9]{0,3})?", text) else 0.0


def _matches(if_none_match: str, sha256: str) -> bool:
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return bool(tags & {"*", f'"{sha256}"'})


def _pairs(range_: str) -> list[tuple[str, str]]:
    return [(first, last) for first, _, last in (part.strip().partition("-") for part in range_[6:].split(","))]


def _is_well_formed(range_: str) -> bool:
    if not _RANGES.fullmatch(range_):
        return False
    return all(not (first and last) or int(first) <= int(last) for first, last in _pairs(range_))


def _check_satisfiable(range_: str, size: int) -> None:
    if any(int(first) >= size if first else int(last) == 0 for first, last in _pairs(range_)):
        raise HTTPException(416, f"{range_[:80]} of a file of {size} bytes", {"Content-Range": f"bytes */{size}"})
