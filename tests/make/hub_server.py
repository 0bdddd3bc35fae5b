"""Server that acts as a Hugging Face hub: answers the requests of `huggingface_hub` from folders `ORG/NAME/`."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    denied: Mapping[str, tuple[int, str]]  # repository -> HTTP status and reason of the hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Log nothing to stderr."""

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        parts = path.strip("/").split("/")
        denial = next((self.denied[repo] for repo in self.denied if f"/{repo}" in path), None)
        if denial:
            self._send(denial[0], b"", {"X-Error-Code": denial[1]} if denial[1] else {}, with_body=with_body)
        elif parts[:2] == ["api", "models"] and (self.root / parts[2] / parts[3]).is_dir():
            folder = self.root / parts[2] / parts[3]
            files = [{"rfilename": p.name} for p in sorted(folder.iterdir())]
            body = json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": files}).encode()
            if len(parts) > 4 and parts[4] == "tree":
                tree = [{"type": "file", "path": f["rfilename"], "oid": "0" * 40, "size": 1} for f in files]
                body = json.dumps(tree).encode()
            self._send(200, body, {"Content-Type": "application/json"}, with_body=with_body)
        elif len(parts) == 5 and parts[2] == "resolve" and (self.root / parts[0] / parts[1] / parts[4]).is_file():
            body = (self.root / parts[0] / parts[1] / parts[4]).read_bytes()
            sha256 = hashlib.sha256(body).hexdigest()
            self._send(200, body, {"ETag": f'"{sha256}"', "X-Repo-Commit": COMMIT}, with_body=with_body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body=with_body)

    def _send(self, code: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextmanager
def serve(root: Path, denied: Mapping[str, tuple[int, str]] | None = None) -> Iterator[str]:
    """Serve a folder of repositories for the duration of the block; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"root": root, "denied": denied or {}}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)  # checks for its end every 0.02 s
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
