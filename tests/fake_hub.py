"""A Hugging Face hub of a few repositories on this machine: the part of its protocol that fetching a model needs."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

Revisions = Mapping[str, Mapping[str, bytes]]  # branch or tag -> name -> content


@dataclass
class FakeHub:
    """`repositories`: name -> its revisions; `gated` and `private` ones want `token`. `seen`: paths asked for."""

    repositories: dict[str, Revisions]
    gated: frozenset[str] = frozenset()
    private: frozenset[str] = frozenset()
    token: str = "hf_secret"
    url: str = ""
    seen: list[str] = field(default_factory=list)

    def commit(self, repository: str, revision: str) -> str:
        """Hash of a revision: of its files."""
        files = self.repositories[repository][revision]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def downloads(self) -> list[str]:
        """Files whose content was sent, without their revision."""
        return [path.split("/", 5)[5] for path in self.seen if path.startswith("GET ") and "/resolve/" in path]

    @contextlib.contextmanager
    def serving(self) -> Iterator[FakeHub]:
        """Answer on a free port of this machine."""
        hub = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                self.answer(hub)

            do_HEAD = do_GET  # noqa: N815

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, hub: FakeHub) -> None:
        path = unquote(urlsplit(self.path).path)
        hub.seen.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        repository, rest = "/".join(parts[:2]), parts[2:]
        revisions = hub.repositories.get(repository)
        allowed = self.headers.get("Authorization") == f"Bearer {hub.token}"
        if revisions is None or (repository in hub.private and not allowed):
            return self.fail(401 if repository in hub.private else 404, "RepoNotFound")
        if repository in hub.gated and not allowed and not is_api:
            return self.fail(403, "GatedRepo")
        asked = rest[1] if len(rest) > 1 else "main"
        name = next((one for one in revisions if asked in (one, hub.commit(repository, one))), None)
        if name is None:
            return self.fail(404, "RevisionNotFound")
        commit, files = hub.commit(repository, name), revisions[name]
        if is_api and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": path, "size": len(data), "oid": _oid(data)} for path, data in files.items()
            ]
            return self.send(json.dumps(tree).encode())
        if is_api:
            siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
            return self.send(json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode())
        data = files.get("/".join(rest[2:]))
        if data is None:
            return self.fail(404, "EntryNotFound")
        return self.send(data, {"X-Repo-Commit": commit, "ETag": f'"{_oid(data)}"'})

    def send(self, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
