"""A Hugging Face hub on the loopback: what `huggingface_hub` needs to create, fill, list and fetch a repository."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest


class Hub(ThreadingHTTPServer):
    """Holds repositories: name -> path -> bytes, and what was requested to create each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: dict[str, dict[str, object]] = {}
        self.fetched: list[str] = []
        self.refuses_commits = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, value: object, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            is_new = name not in self.server.repositories
            if is_new:
                self.server.created[name], self.server.repositories[name] = asked, {".gitattributes": b""}
            self._answer({"url": f"{self.server.url}/{name}", "name": name}, 200 if is_new else 409)
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif self.server.refuses_commits:
            self._answer({"error": "you may not write here"}, 403)
        else:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            files = self.server.repositories[name]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            self._answer(
                {"commitUrl": f"{self.server.url}/{name}/commit/{_commit(files)}", "commitOid": _commit(files)}
            )

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name = path.removeprefix("/api/models/").strip("/").split("/")[:2]
        repository = "/".join(name)
        files = self.server.repositories.get(repository)
        if files is None:
            self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif "/tree/" in path:
            self._answer(
                [{"type": "file", "path": p, "size": len(d), "oid": sha256(d).hexdigest()} for p, d in files.items()]
            )
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in files]
            self._answer({"id": repository, "sha": _commit(files), "siblings": siblings, "tags": []})
        else:
            file = path.split("/resolve/")[1].partition("/")[2]
            if self.command == "GET":
                self.server.fetched.append(file)
            etag = f'"{sha256(files[file]).hexdigest()}"'
            self._answer(files[file], X_Repo_Commit=_commit(files), ETag=etag)

    do_HEAD = do_GET  # noqa: N815


def _commit(files: dict[str, bytes]) -> str:
    return sha256(repr(sorted(files.items())).encode()).hexdigest()[:40]


@contextmanager
def local_hub(cache: Path) -> Iterator[Hub]:
    """Run a hub that `huggingface_hub` uses instead of the real one, with a cache of its own."""
    hub = Hub()
    Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    constants = huggingface_hub.constants
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", "hf_local")
        yield hub
    hub.shutdown()
    hub.server_close()
