"""A service of this release on what an earlier one left behind (:mod:`tests.upgrade.make`)."""

import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.jobs.repository import connect
from known_core.stack import Stack
from tests.conftest import SETTINGS
from tests.upgrade.make import DATA, STORE

RELEASES = sorted((Path(__file__).parent / "data").glob("*.tar.xz"))
KEPT = {  # what was made then is old by now, and is not to be swept away
    "KNOWN_JOB_RETENTION_DAYS": "0",
    "KNOWN_UPLOAD_RETENTION_DAYS": "0",
    "KNOWN_WORK_RETENTION_HOURS": "1000000",
    "KNOWN_HUB_ENDPOINT": "http://127.0.0.1:1",
}


@contextmanager
def upgraded(release: Path, folder: Path) -> Iterator[tuple[Stack, dict[str, Any]]]:
    """The stack without a worker, and what the release said when it was left."""
    with tarfile.open(release) as tar:
        tar.extractall(folder, filter="data")
    said = json.loads((folder / STORE).read_text())
    with Stack(folder, port=0, environment={**SETTINGS, **KEPT}, workers=0) as stack:
        _restore(stack.store_url, json.loads(json.dumps(said["keys"]).replace(DATA, str(folder.resolve()))))
        yield stack, said["facts"]


def _restore(url: str, keys: Mapping[str, Any]) -> None:
    store: Any = connect(url)
    for key, (kind, value) in keys.items():
        store.delete(key)
        if kind == "string":
            store.set(key, value)
        elif kind == "hash":
            store.hset(key, mapping=value)
        elif kind == "set":
            store.sadd(key, *value)
        elif kind == "zset":
            store.zadd(key, dict(value))
        elif kind == "list":
            store.rpush(key, *value)
        else:
            for entry_id, fields in value:
                store.xadd(key, fields, id=entry_id)
