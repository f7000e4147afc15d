"""An S3 server as a process of its own: moto's, with what it lacks, and with faults.

``python -m tests.storage.server ADDRESS PORT``. Moto takes every signature. Here a presigned address (AWS Signature
Version 4 in the query) is verified as AWS does: signed with the server's secret, by botocore's own code, not expired,
and the only credential of the request. ``POST /faults?every=N`` makes every Nth request a 503, as S3 answers who should
slow down; 0: none. ``GET /faults`` says how many there were.
"""

import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

KEY_ID, SECRET = "known", "canary-of-the-bucket"
_SLOW_DOWN = b"<Error><Code>ServiceUnavailable</Code><Message>Please reduce your request rate.</Message></Error>"
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Request has expired, or was changed</Message></Error>"


class Server:
    """A WSGI application."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._every = self._asked = self._faults = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
        if environ["PATH_INFO"] == "/faults":
            if environ["REQUEST_METHOD"] == "POST":
                self._every = int(query["every"])
            start_response("200 OK", [])
            return [str(self._faults).encode()]
        self._asked += 1
        if self._every and self._asked % self._every == 0:
            self._faults += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [_SLOW_DOWN]
        if "X-Amz-Signature" in query and ("HTTP_AUTHORIZATION" in environ or not _is_good(environ, query)):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [_DENIED]
        answer: Iterable[bytes] = self._moto(environ, start_response)
        return answer


def _is_good(environ: dict[str, Any], query: dict[str, str]) -> bool:
    signed_at = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    if time.time() > signed_at + int(query["X-Amz-Expires"]):
        return False
    _, _, region, _, _ = query["X-Amz-Credential"].split("/")
    plain = "&".join(
        f"{name}={quote(value, safe='')}" for name, value in query.items() if not name.startswith("X-Amz-")
    )
    url = f"http://{environ['HTTP_HOST']}{quote(environ['PATH_INFO'].encode('latin-1'))}" + (
        f"?{plain}" if plain else ""
    )
    request = AWSRequest(method=environ["REQUEST_METHOD"], url=url)
    request.context["timestamp"] = query["X-Amz-Date"]
    auth = S3SigV4QueryAuth(Credentials(KEY_ID, SECRET), "s3", region, expires=int(query["X-Amz-Expires"]))
    auth._modify_request_before_signing(request)
    signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    return bool(signature == query["X-Amz-Signature"])


if __name__ == "__main__":
    run_simple(sys.argv[1], int(sys.argv[2]), Server(), threaded=True)
