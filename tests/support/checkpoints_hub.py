"""A Hugging Face hub on the loopback interface: the few routes that a download of a model asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """repositories: id -> file name -> content. gated: ids whose terms were not accepted.

    requests: method and path of everything that was asked.
    """

    repositories: dict[str, Mapping[str, bytes]]
    gated: set[str] = field(default_factory=set)
    licence: str = "apache-2.0"
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def downloads(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {
            path.split(f"/resolve/{COMMIT}/")[1]
            for path in self.requests
            if path.startswith("GET") and "/resolve/" in path
        }

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repo, rest = "/".join(parts[:2]), parts[2:]
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if repo not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        files = self.repositories[repo]
        if api:
            listing: Any = self.tree(files) if rest[:1] == ["tree"] else self.info(repo, files)
            return 200, {"Content-Type": "application/json"}, json.dumps(listing).encode()
        name = "/".join(rest[2:])
        if rest[:1] != ["resolve"] or name not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        etag = hashlib.sha256(files[name]).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, files[name]

    def info(self, repo: str, files: Mapping[str, bytes]) -> dict[str, Any]:
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        return {
            "id": repo,
            "sha": COMMIT,
            "siblings": siblings,
            "cardData": {"license": self.licence},
            "tags": [],
        }

    def tree(self, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
        ]


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub answers at `hub.url` while the body runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {unquote(self.path)}")
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 (the name that http.server looks for)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
