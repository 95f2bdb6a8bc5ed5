"""A hub on this machine that answers as the Hugging Face hub does, for as much of it as models need."""

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
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

REFUSALS = {
    "gated": (403, "GatedRepo", "Access to this model is restricted."),
    "private": (401, "RepoNotFound", "Invalid username or password."),
    "missing": (404, "RepoNotFound", "Repository not found"),
    "no revision": (404, "RevisionNotFound", "Invalid rev id"),
    "disabled": (403, "", "Access to this resource is disabled."),
    "limit": (429, "", "We had to rate limit you"),
    "busy": (503, "", "overloaded"),
    "bad token": (401, "", "Invalid credentials in Authorization header"),
}


@dataclass
class Repository:
    """A repository on the fake hub.

    Attributes:
        files: content by name.
        refusal: a key of `REFUSALS` with which everything is answered, or "".
        gated: its information is public, its files are not.
        version: moves with every change, and with it the commit.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    refusal: str = ""
    gated: bool = False
    version: int = 0

    @property
    def commit(self) -> str:
        return hashlib.sha1(f"{id(self)} {self.version}".encode()).hexdigest()


class FakeHub:
    """Attributes: repositories, by "models/org/name" or "datasets/org/name"; requests, the paths asked for so far."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []

    def add(self, name: str, folder: Path | None = None, **settings: Any) -> Repository:
        """A repository with the files of `folder`."""
        files = {file.name: file.read_bytes() for file in folder.iterdir()} if folder else {}
        self.repositories[name] = Repository(files, **settings)
        return self.repositories[name]

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        parts = path.removeprefix("/api").strip("/").split("/")
        if not path.startswith("/api") and parts[0] != "datasets":
            parts = ["models", *parts]
        found = self.repositories.get("/".join(parts[:3]), Repository(refusal="missing"))
        if found.refusal:
            return self.refuse(found.refusal)
        rest = parts[3:]
        if found.gated and rest[:1] in (["auth-check"], ["resolve"]):
            return self.refuse("gated")
        if rest[:1] in (["revision"], ["tree"], ["resolve"]) and rest[1] not in (
            "main",
            found.commit,
        ):
            return self.refuse("no revision")
        if rest[:1] == ["resolve"]:
            return self.file(found, "/".join(rest[2:]))
        if rest[:1] == ["tree"]:
            return self.say(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in found.files.items()
                ]
            )
        return self.say({"id": "/".join(parts[1:3]), "sha": found.commit, "gated": "auto" if found.gated else False})

    def file(self, found: Repository, name: str) -> tuple[int, dict[str, str], bytes]:
        content = found.files[name]
        return (
            200,
            {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": found.commit},
            content,
        )

    def say(self, content: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def refuse(self, kind: str) -> tuple[int, dict[str, str], bytes]:
        status, code, message = REFUSALS[kind]
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        if code:
            headers["X-Error-Code"] = code
        return status, headers, json.dumps({"error": message}).encode()


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """A fake hub that this process asks until the end of the context; what is downloaded goes to `cache`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(path)
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
    }.items():
        monkeypatch.setattr(constants, name, value)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
