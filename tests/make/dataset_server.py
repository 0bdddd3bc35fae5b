"""Server that acts as a Hugging Face hub of datasets: answers the requests of `huggingface_hub` from folders.

The folder `ORG/NAME/` is the branch main of a repository. `ORG/NAME@REVISION/` is another branch, with `--` for `/`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

SMALL = ("README.md", ".gitattributes", ".yaml", ".txt")  # small files, which are stored in Git under a SHA-1


PUBLIC = ("README.md", ".gitattributes")  # files of a gated repository that the hub shows to everybody


@dataclass(frozen=True)
class Denial:
    """Refusal of a repository by the hub: HTTP status and headers, for data files or for every request."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    files_only: bool = False


@dataclass
class Hub:
    """A running server: its address, and the method and path of each request, in order."""

    endpoint: str = ""
    requests: list[str] = field(default_factory=list)

    def files(self) -> list[str]:
        """The data files that were sent, without cards and `.gitattributes`."""
        sent = [path for method, _, path in (request.partition(" ") for request in self.requests) if method == "GET"]
        names = [path.partition("/resolve/")[2].partition("/")[2] for path in sent if "/resolve/" in path]
        return sorted(name for name in names if name not in ("README.md", ".gitattributes"))


def commit_of(folder: Path) -> str:
    """Return the commit of a folder. If the revision in the folder's name is a commit, the revision is returned."""
    revision = folder.name.partition("@")[2]
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return hashlib.sha1(folder.name.encode()).hexdigest()


def snapshot_of(cache: Path, repo: str, folder: Path) -> Path:
    """Return the folder in which the client caches the files of a repository that is served from a folder."""
    return cache / f"datasets--{repo.replace('/', '--')}" / "snapshots" / commit_of(folder)


def copy_without_lists(cache: Path) -> Path:
    """Copy the client's cache without its lists of files, as older clients and other downloaders write it."""
    copy = cache.with_name("cache_without_lists")
    shutil.copytree(cache, copy, symlinks=True, ignore=shutil.ignore_patterns("trees"))
    return copy


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(
        self, hub: Hub, root: Path, gated: frozenset[str], denied: Mapping[str, Denial], *args: object
    ) -> None:
        self.hub, self.root, self.gated, self.denied = hub, root, gated, denied
        super().__init__(*args)  # type: ignore[arg-type]  # the server's

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Log nothing to stderr."""

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        parts = [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]
        is_api = parts[0] == "api"
        kind, org, name, *rest = [*parts[is_api:], "", ""]  # the client also requests other addresses
        if f"{org}/{name}" in self.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        denial = self.denied.get(f"{org}/{name}")
        if denial and (not denial.files_only or ("resolve" in rest and parts[-1] not in PUBLIC)):
            return self._send(denial.status, b"", denial.headers)
        if kind != "datasets" or not name or not (self.root / org / name).is_dir():
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        rest = [part for part in rest if part]
        revision = rest[1] if len(rest) > 1 else "main"
        folder = self._folder(org, name, revision)
        if folder is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if not is_api:
            return self._send_file(folder, folder / "/".join(rest[2:]))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        answer = [_describe(folder, path) for path in files]
        if not rest or rest[0] != "tree":
            siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
            answer = {"id": f"{org}/{name}", "sha": commit_of(folder), "siblings": siblings}
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _folder(self, org: str, name: str, revision: str) -> Path | None:
        folders = [self.root / org / name, *(self.root / org).glob(f"{name}@*")]
        wanted = name if revision == "main" else f"{name}@{revision.replace('/', '--')}"
        return next((folder for folder in folders if folder.name == wanted or commit_of(folder) == revision), None)

    def _send_file(self, folder: Path, path: Path) -> None:
        headers = {"X-Repo-Commit": commit_of(folder)}
        if path.is_file():
            self._send(200, path.read_bytes(), {"ETag": f'"{_etag(path)}"', **headers})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", **headers})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _etag(path: Path) -> str:
    body = path.read_bytes()
    if path.name.endswith(SMALL):
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    return hashlib.sha256(body).hexdigest()


def _describe(folder: Path, path: Path) -> dict[str, object]:
    size, oid = path.stat().st_size, _etag(path)
    entry = {"type": "file", "path": path.relative_to(folder).as_posix(), "oid": oid[:40], "size": size}
    return entry | ({"lfs": {"oid": oid, "size": size, "pointerSize": 130}} if len(oid) == 64 else {})


@contextmanager
def serve(
    root: Path, *, gated: frozenset[str] = frozenset(), denied: Mapping[str, Denial] | None = None
) -> Iterator[Hub]:
    """Serve a folder of repositories for the duration of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, hub, root, gated, denied or {}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    # The server checks for its end every 0.02 seconds.
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
