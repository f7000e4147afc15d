"""A local Hub: the routes that huggingface_hub 2.x uses, over real HTTP, everything in memory.

The routes and their answers were found by running the official client; git objects are only names here, Xet is not
served: downloads need none, for uploads set HF_HUB_DISABLE_XET=1. ``faults`` makes requests fail, ``requests`` lists
what was asked, ``body_bytes`` counts what was sent of files.
"""

import asyncio
import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_DATE = "2026-11-25T00:00:00.000Z"
Answer = Callable[..., Awaitable[Response]]


@dataclass(frozen=True)
class File:
    """A file of a commit; large ones go through LFS and are named by their sha256."""

    data: bytes
    lfs: bool = False

    @property
    def sha1(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data, usedforsecurity=False).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.sha1


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    files: Mapping[str, File]


@dataclass
class Repo:
    """A model or data set repository. ``gated`` repositories open to the users in ``granted``."""

    kind: str  # "models" or "datasets"
    id: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # main, refs/pr/1, tags, branches

    def __post_init__(self) -> None:
        self.commit("main", "initial commit", {})

    def commit(self, ref: str, title: str, changes: Mapping[str, File | None], base: str | None = None) -> Commit:
        """A commit on a branch, or on a new one that begins at ``base``; a file that becomes None is deleted."""
        parent = self.refs.get(ref, base)
        files = dict(self.commits[parent].files) if parent else {}
        for path, file in changes.items():
            if file is None:
                files.pop(path, None)
            else:
                files[path] = file
        oid = hashlib.sha1(f"{self.id} {ref} {title} {len(self.commits)}".encode(), usedforsecurity=False).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, files)
        self.refs[ref] = oid
        return self.commits[oid]

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag, or of the beginning of its id."""
        oid = self.refs.get(revision, revision)
        return next((self.commits[known] for known in self.commits if len(oid) >= 7 and known.startswith(oid)), None)

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]


@dataclass
class Fault:
    """``times`` requests that match are answered with a status, or the connection is cut in the middle of the body.

    With ``delay_s`` they are answered as they should be, but late.
    """

    method: str
    path: str  # regular expression, searched in the raw path
    status: int = 503
    times: int = 1
    cut_after: int | None = None  # bytes of the body
    message: str = "injected"
    delay_s: float = 0.0


class Problem(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class LocalHub:
    """The server; ``url`` goes to HF_ENDPOINT or ``HfApi(endpoint=...)``.

    Args:
        users: access tokens and the users they belong to.
        multipart_bytes: LFS files above this size are uploaded in parts of that size.
        page_entries: the tree of a repository comes in pages of so many files.
    """

    def __init__(self, users: Mapping[str, str], multipart_bytes: int = 5_000_000, page_entries: int = 1000) -> None:
        self.users = dict(users)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.renamed: dict[tuple[str, str], str] = {}  # old id to new id
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.tokens: set[str] = set()  # that came with requests
        self.redirects: dict[str, str] = {}  # what requests begin with, such as GET /api, to the host they are sent to
        self.body_bytes = 0
        self.served: dict[str, bytes] = {}  # other bytes than those of the file with this sha256
        self.redirects_lfs = False  # to another host, as the real Hub sends them to its storage
        self._page_entries = page_entries
        self._multipart_bytes = multipart_bytes
        self._lfs: dict[str, bytes] = {}
        self._parts: dict[tuple[str, int], bytes] = {}
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        methods = ["GET", "HEAD", "POST", "PUT", "DELETE"]
        application = Starlette(routes=[Route("/{path:path}", self._answer, methods=methods)])
        self._server = uvicorn.Server(uvicorn.Config(application, log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> "LocalHub":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    def add(
        self, kind: str, repo_id: str, files: Mapping[str, bytes], *, private: bool = False, gated: bool = False
    ) -> Repo:
        """A repository with one commit; files named .safetensors, .zip or .parquet are in LFS."""
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private, gated)
        repo.commit("main", "files", {path: File(data, _is_large(path)) for path, data in files.items()})
        return repo

    def rename(self, kind: str, old: str, new: str) -> None:
        """Give a repository another id; the old one leads there."""
        repo = self.repos[kind, new] = self.repos.pop((kind, old))
        repo.id = new
        self.renamed[kind, old] = new

    async def _answer(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode().partition("?")[0]
        self.requests.append(f"{request.method} {path}")
        if "authorization" in request.headers:
            self.tokens.add(request.headers["authorization"].removeprefix("Bearer "))
        fault = self._fault(request.method, path)
        if fault is not None and fault.delay_s:
            await asyncio.sleep(fault.delay_s)
            fault = None
        if fault is not None and fault.cut_after is None:
            return JSONResponse({"error": fault.message}, fault.status)
        moved = self._moved(path)
        elsewhere = next(
            (to + path for start, to in self.redirects.items() if self.requests[-1].startswith(start)), None
        )
        if moved or elsewhere:
            query = f"?{request.url.query}" if request.url.query else ""
            return Response(status_code=307, headers={"Location": (elsewhere or f"{self.url}{moved}") + query})
        try:
            for method, pattern, answer in self._routes():
                found = re.fullmatch(pattern, path)
                if found and request.method in method.split("|"):
                    response = await answer(
                        request, **{key: unquote(part) for key, part in found.groupdict("").items()}
                    )
                    return _Cut(response, fault.cut_after) if fault and fault.cut_after is not None else response
            raise Problem(404, f"no route for {request.method} {path}")
        except Problem as problem:
            headers = {"X-Error-Message": problem.message} | ({"X-Error-Code": problem.code} if problem.code else {})
            return JSONResponse({"error": problem.message}, problem.status, headers)

    def _moved(self, path: str) -> str | None:
        """The same path below the repository's new id, where it has one."""
        for (kind, old), new in self.renamed.items():
            stems = (f"/api/{kind}/", "/datasets/" if kind == "datasets" else "/")
            for stem in stems:
                if path.startswith((f"{stem}{old}/", f"{stem}{old}.git/")) or path == stem + old:
                    return stem + new + path.removeprefix(stem + old)
        return None

    def _fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def _routes(self) -> list[tuple[str, str, Answer]]:
        api = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
        page = r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+?)"
        return [
            ("GET", r"/api/whoami-v2", self._whoami),
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate_yaml),
            ("GET|HEAD", rf"{api}(?:/revision/(?P<revision>[^/]+))?", self._info),
            ("GET", rf"{api}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", self._tree),
            ("POST", rf"{api}/paths-info/(?P<revision>[^/]+)", self._paths_info),
            ("GET", rf"{api}/refs", self._refs),
            ("GET", rf"{api}/auth-check", self._auth_check),
            ("POST", rf"{api}/preupload/(?P<revision>[^/]+)", self._preupload),
            ("POST", rf"{api}/commit/(?P<revision>[^/]+)", self._commit),
            ("POST", rf"{page}\.git/info/lfs/objects/batch", self._lfs_batch),
            ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", self._lfs_put),
            ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)", self._lfs_put_part),
            ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", self._lfs_complete),
            ("POST", r"/lfs/verify", self._lfs_verify),
            ("GET|HEAD", r"/storage/(?P<oid>[0-9a-f]{64})", self._storage),
            ("GET|HEAD", rf"{page}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self._resolve),
        ]  # fmt: skip

    def _user(self, request: Request) -> str | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.users:
            raise Problem(401, "Invalid credentials in Authorization header")
        return self.users.get(token)

    def _repo(self, request: Request, kind: str, repo_id: str, *, write: bool = False, content: bool = False) -> Repo:
        user = self._user(request)
        repo = self.repos.get(("datasets" if kind.startswith("datasets") else "models", repo_id))
        if repo is None or (repo.private and user != repo.owner):
            raise Problem(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != repo.owner:
            raise Problem(403, "You don't have the rights to write here")
        if content and repo.gated and user not in {repo.owner, *repo.granted}:
            raise Problem(403 if user else 401, f"Access to {repo_id} is restricted", "GatedRepo")
        return repo

    def _at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(revision or "main")
        if commit is None:
            raise Problem(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    async def _whoami(self, request: Request) -> Response:
        user = self._user(request)
        if user is None:
            raise Problem(401, "Invalid username or password.")
        return JSONResponse(
            {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"type": "access_token"}}
        )

    async def _create(self, request: Request) -> Response:
        user, body = self._user(request), await request.json()
        if user is None:
            raise Problem(401, "Invalid username or password.")
        owner, kind = body.get("organization") or user, f"{body.get('type', 'model')}s"
        if owner != user:
            raise Problem(403, f"You don't have the rights to create a model under the namespace {owner}")
        repo_id = f"{owner}/{body['name']}"
        url = f"{self.url}/{'datasets/' if kind == 'datasets' else ''}{repo_id}"
        if (kind, repo_id) in self.repos:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        private = body.get("visibility") == "private" or body.get("private", False)
        self.repos[kind, repo_id] = Repo(kind, repo_id, private)
        return JSONResponse({"url": url, "name": repo_id, "id": repo_id})

    async def _validate_yaml(self, request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    async def _info(self, request: Request, kind: str, id: str, revision: str) -> Response:
        repo = self._repo(request, kind, id)
        commit = self._at(repo, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        return JSONResponse({
            "_id": hashlib.sha1(id.encode(), usedforsecurity=False).hexdigest()[:24], "id": id, "sha": commit.oid,
            "private": repo.private, "gated": "manual" if repo.gated else False, "disabled": False, "tags": [],
            "lastModified": _DATE, "createdAt": _DATE, "siblings": siblings,
        })  # fmt: skip

    async def _tree(self, request: Request, kind: str, id: str, revision: str, path: str) -> Response:
        commit = self._at(self._repo(request, kind, id), revision)  # of gated ones too, as on the real Hub
        prefix = f"{path}/" if path else ""
        below = {name: file for name, file in commit.files.items() if name.startswith(prefix)}
        if path and not below:
            raise Problem(404, f"{path} does not exist", "EntryNotFound")
        recursive = request.query_params.get("recursive", "false").lower() == "true"
        folders = {
            prefix + name.removeprefix(prefix).partition("/")[0] for name in below if "/" in name.removeprefix(prefix)
        }
        entries = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        shown = (
            below if recursive else {name: file for name, file in below.items() if "/" not in name.removeprefix(prefix)}
        )
        entries += [_entry(name, file) for name, file in sorted(shown.items())]
        begin = int(request.query_params.get("cursor", 0))
        end = begin + self._page_entries
        following = f'<{request.url.include_query_params(cursor=end)}>; rel="next"'
        return JSONResponse(entries[begin:end], headers={"Link": following} if end < len(entries) else None)

    async def _paths_info(self, request: Request, kind: str, id: str, revision: str) -> Response:
        commit = self._at(self._repo(request, kind, id, content=True), revision)
        wanted = parse_qs((await request.body()).decode()).get("paths", [])
        return JSONResponse([_entry(name, commit.files[name]) for name in wanted if name in commit.files])

    async def _auth_check(self, request: Request, kind: str, id: str) -> Response:
        self._repo(request, kind, id, content=True)
        return JSONResponse({})

    async def _refs(self, request: Request, kind: str, id: str) -> Response:
        repo = self._repo(request, kind, id)
        pulls = {name: oid for name, oid in repo.refs.items() if name.startswith("refs/pr/")}
        branches = {name: oid for name, oid in repo.refs.items() if name not in pulls}

        def rows(refs: Mapping[str, str], stem: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": stem + name, "targetCommit": oid} for name, oid in refs.items()]

        return JSONResponse({
            "branches": rows(branches, "refs/heads/"), "converts": [], "tags": [], "pullRequests": rows(pulls, "")
        })  # fmt: skip

    async def _preupload(self, request: Request, kind: str, id: str, revision: str) -> Response:
        commit = self._at(self._repo(request, kind, id, write=True), revision)
        files = (await request.json())["files"]
        return JSONResponse({
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if _is_large(file["path"]) or file["size"] > 10_000_000 else "regular",
                    "shouldIgnore": False,
                    **({"oid": commit.files[file["path"]].etag} if file["path"] in commit.files else {}),
                }
                for file in files
            ]
        })  # fmt: skip

    async def _commit(self, request: Request, kind: str, id: str, revision: str) -> Response:
        repo = self._repo(request, kind, id, write=True)
        base = self._at(repo, revision)
        lines = [json.loads(line) for line in (await request.body()).splitlines() if line]
        header: dict[str, Any] = {}
        changes: dict[str, File | None] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                changes[value["path"]] = File(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self._lfs:
                    raise Problem(400, f"LFS object {value['oid']} was not uploaded")
                changes[value["path"]] = File(self._lfs[value["oid"]], lfs=True)
            elif line["key"] == "deletedFile":
                changes[value["path"]] = None
        if header.get("parentCommit") not in (None, base.oid):
            raise Problem(412, f"{revision} has moved: it is at {base.oid}, not at {header['parentCommit']}")
        ref, pull = revision, None
        if request.query_params.get("create_pr") == "1":
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
            ref, pull = f"refs/pr/{number}", f"{self.url}/{id}/discussions/{number}"
        commit = repo.commit(ref, header["summary"], changes, base.oid)
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{self.url}/{id}/commit/{commit.oid}"}
        return JSONResponse(answer | ({"pullRequestUrl": pull} if pull else {}))

    async def _lfs_batch(self, request: Request, kind: str, id: str) -> Response:
        self._repo(request, kind, id, write=True)
        body = await request.json()
        objects, transfer = [], "basic"
        for wanted in body["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self._lfs:
                href, upload = f"{self.url}/lfs/{oid}", {}
                if "multipart" in body["transfers"] and size > self._multipart_bytes:
                    transfer, count = "multipart", -(-size // self._multipart_bytes)
                    parts = {f"{number:05}": f"{href}/{number}" for number in range(1, count + 1)}
                    upload = {"href": f"{href}/complete", "header": {"chunk_size": str(self._multipart_bytes), **parts}}
                else:
                    upload = {"href": href}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/lfs/verify"}}
            objects.append(entry)
        return JSONResponse({"transfer": transfer, "objects": objects})

    async def _lfs_put(self, request: Request, oid: str) -> Response:
        self._store(oid, await request.body())
        return Response()

    async def _lfs_put_part(self, request: Request, oid: str, number: str) -> Response:
        self._parts[oid, int(number)] = await request.body()
        return Response(headers={"ETag": f'"{number}"'})

    async def _lfs_complete(self, request: Request, oid: str) -> Response:
        numbers = [part["partNumber"] for part in (await request.json())["parts"]]
        self._store(oid, b"".join(self._parts.pop((oid, number)) for number in numbers))
        return JSONResponse({})

    def _store(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Problem(400, "the bytes have another sha256")
        self._lfs[oid] = data

    async def _lfs_verify(self, request: Request) -> Response:
        body = await request.json()
        if len(self._lfs.get(body["oid"], b"")) != body["size"]:
            raise Problem(404, "object not found")
        return JSONResponse({})

    async def _resolve(self, request: Request, kind: str, id: str, revision: str, path: str) -> Response:
        commit = self._at(self._repo(request, kind, id, content=True), revision)
        if path not in commit.files:
            raise Problem(404, f"{path} does not exist", "EntryNotFound")
        file = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
            if self.redirects_lfs:
                storage = self.url.replace("127.0.0.1", "localhost")
                return Response(status_code=302, headers={**headers, "Location": f"{storage}/storage/{file.sha256}"})
        return self._body(request, file, headers)

    async def _storage(self, request: Request, oid: str) -> Response:
        if "authorization" in request.headers:
            raise Problem(400, "a token was sent to another host")
        files = (
            file for repo in self.repos.values() for commit in repo.commits.values() for file in commit.files.values()
        )
        file = next(file for file in files if file.sha256 == oid)
        return self._body(request, file, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _body(self, request: Request, file: File, headers: Mapping[str, str]) -> Response:
        data, status = self.served.get(file.sha256, file.data), 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        ranges = {}
        if wanted:
            begin, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
            ranges = {"Content-Range": f"bytes {begin}-{end}/{len(data)}"}
            data, status = data[begin : end + 1], 206
        if request.method == "HEAD":
            return Response(status_code=status, headers={**headers, **ranges, "Content-Length": str(len(data))})
        self.body_bytes += len(data)
        return Response(data, status, {**headers, **ranges})


class _Cut(Response):
    """The beginning of another answer; then the connection ends."""

    def __init__(self, whole: Response, count: int) -> None:
        super().__init__(whole.body, whole.status_code, dict(whole.headers))
        self._count = count

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: self._count], "more_body": True})
        raise ConnectionError("cut, as a test asked for")


def _is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".zip", ".parquet", ".png"))


def _entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.data), "oid": file.sha1}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": 134}
    return entry
