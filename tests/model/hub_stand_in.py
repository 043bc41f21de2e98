"""A stand-in for the Hugging Face Hub on 127.0.0.1: as much of its HTTP API as a download uses, and ways to fail."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest


@dataclass
class Repository:
    """Files by path, for each commit; names of branches and tags; what a request needs, and what goes wrong."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    token: str | None = None
    broken: str | None = None  # a file of which half comes
    short: str | None = None  # a file that is half as long as the list of files says


@dataclass
class Hub:
    """A running stand-in."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Authorization

    def add(self, name: str, directory: Path, revision: str = "main", **how: Any) -> str:
        """Put the files of a directory there as a commit; return its hash."""
        files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        commit = hashlib.sha1(json.dumps([name, revision, sorted(files)]).encode()).hexdigest()
        repository = self.repositories.setdefault(name, Repository({}, {}, **how))
        repository.commits[commit], repository.refs[revision] = files, commit
        return commit

    def fetched(self) -> set[str]:
        """Return which files were read, by name."""
        paths = [path for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]
        return {path.split("/resolve/")[1].split("/", 1)[1] for path in paths}


@contextmanager
def serve_hub(cache: Path) -> Iterator[Hub]:
    """Run a stand-in on a free port of 127.0.0.1, which huggingface_hub takes for the Hub, with its cache in a folder.

    It is reached even where other tests have forbidden the network.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        with _serving(Hub()) as hub:
            patch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
            patch.setattr(
                "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            )
            yield hub


@contextmanager
def _serving(hub: Hub) -> Iterator[Hub]:

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def send(self, status: int, content: bytes, cut: int | None = None, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content if cut is None else content[:cut])
            if cut is not None:
                self.wfile.flush()
                self.connection.close()
                self.close_connection = True

        def answer(self) -> None:
            path = unquote(self.path.split("?")[0]).strip("/")
            hub.requests.append((self.command, path, self.headers.get("Authorization")))
            api = path.startswith("api/models/")
            parts = path.removeprefix("api/models/").split("/")
            name, what, rest = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "", parts[3:]
            repository = hub.repositories.get(name)
            if repository is None:
                return self.send(404, b"{}", X_Error_Code="RepoNotFound")
            if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
                return self.send(401, b"{}")
            commit = repository.refs.get(rest[0], rest[0]) if rest else repository.refs["main"]
            if commit not in repository.commits:
                return self.send(404, b"{}", X_Error_Code="RevisionNotFound")
            files = repository.commits[commit]
            if api:
                return self.send(200, json.dumps(self.listing(name, what, commit, files)).encode())
            return self.file(repository, commit, "/".join(rest[1:]))

        def listing(self, name: str, what: str, commit: str, files: dict[str, bytes]) -> Any:
            if what == "tree":
                return [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in files.items()
                ]
            siblings = [{"rfilename": path} for path in files]
            return {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}

        def file(self, repository: Repository, commit: str, name: str) -> None:
            content = repository.commits[commit].get(name)
            if content is None:
                return self.send(404, b"", X_Error_Code="EntryNotFound")
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            facts = {"ETag": etag, "X_Repo_Commit": commit, "X_Linked_Size": str(len(content))}
            half = len(content) // 2
            if self.command == "GET" and name == repository.short:
                return self.send(200, content[:half], **facts)
            cut = half if self.command == "GET" and name == repository.broken else None
            return self.send(200, content, cut, **facts)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
