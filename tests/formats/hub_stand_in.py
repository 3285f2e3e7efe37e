"""A stand-in for a model hub: the part of its HTTP interface that huggingface_hub uses to make, fill and fetch."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse


class StandIn:
    """Repositories in memory: name -> branch -> file -> bytes. `requests` are method and path of all it was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.address = ""
        self.refuse: int | None = None


def _commit_of(files: dict[str, bytes]) -> str:
    digest = hashlib.sha1()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + content)
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        path = urlparse(self.path).path
        self.hub.requests.append(f"POST {path}")
        body = self._body()
        if self.hub.refuse is not None:
            self._answer(self.hub.refuse, {"error": "You may not"}, X_Error_Message="You may not")
        elif path == "/api/repos/create":
            said = json.loads(body)
            name = "/".join(part for part in (said.get("organization"), said["name"]) if part)
            self.hub.repositories.setdefault(name, {"main": {}})
            self._answer(200, {"url": f"{self.hub.address}/{name}"})
        elif path.startswith("/api/validate-yaml"):
            self._answer(200, {"errors": [], "warnings": []})
        elif "/branch/" in path:
            name, _, branch = path.removeprefix("/api/models/").partition("/branch/")
            branches = self.hub.repositories[name]
            branches.setdefault(unquote(branch), dict(branches["main"]))
            self._answer(200, {})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            answer = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self._answer(200, {"files": answer})
        elif "/commit/" in path:
            name, _, branch = path.removeprefix("/api/models/").partition("/commit/")
            self._commit(name, unquote(branch), body)
        else:
            self._answer(404)

    def _commit(self, name: str, branch: str, body: bytes) -> None:
        files = self.hub.repositories[name][branch]
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                self.hub.messages.append(entry["value"]["summary"])
            elif entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        commit = _commit_of(files)
        self._answer(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        for name, branches in self.hub.repositories.items():
            if path.startswith(f"/api/models/{name}"):
                rest = path.removeprefix(f"/api/models/{name}").strip("/").split("/")
                branch = unquote(rest[1]) if rest[0] in ("revision", "tree") else "main"
                files = branches.get(branch) or next((f for f in branches.values() if _commit_of(f) == branch), None)
                if files is None:
                    break
                if rest[0] == "tree":
                    listed = [
                        {"type": "file", "path": f, "size": len(c), "oid": _commit_of({f: c})} for f, c in files.items()
                    ]
                    self._answer(200, listed)
                else:
                    siblings = [{"rfilename": file} for file in files]
                    self._answer(200, {"id": name, "sha": _commit_of(files), "siblings": siblings, "private": False})
                return
            if path.startswith(f"/{name}/resolve/"):
                commit, _, file = path.removeprefix(f"/{name}/resolve/").partition("/")
                for files in branches.values():
                    if commit in (_commit_of(files), "main") and unquote(file) in files:
                        content = files[unquote(file)]
                        etag = hashlib.sha1(content).hexdigest()
                        self._answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=_commit_of(files))
                        return
        self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A hub on this machine, for as long as the block lasts."""
    hub = StandIn()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
