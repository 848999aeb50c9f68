"""A hub on loopback for tests: as much of huggingface.co's API as its client needs to make and fill a repository.

Paths and bodies are those of huggingface_hub 1.16 (`hf_api`, `_commit_api`, `lfs`).
"""

import base64
import json
from hashlib import sha256
from typing import Any

from compression_assets_tests.loopback import LoopbackServer, QuietHandler

LARGE = (".safetensors", ".gguf")
WRITE, READ = "hf_write", "hf_read"
OWNER = "me"


class HubServer(LoopbackServer):
    """repos: name -> file -> content, private ones in `private`. refuse_commits: answers commits with a 500."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.refuse_commits = False
        self.requests: list[str] = []
        self.uploads: dict[str, bytes] = {}
        super().__init__(self._handler())

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        if path.startswith("/upload/"):
            self.uploads[path.removeprefix("/upload/")] = body
            return 200, {}
        if token not in (WRITE, READ):
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            role = "write" if token == WRITE else "read"
            return 200, {"name": OWNER, "auth": {"accessToken": {"role": role}}}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [self._place(one) for one in json.loads(body)["objects"]],
            }
        repo = path.removeprefix("/api/models/").partition("/preupload/")[0].partition("/commit/")[0]
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}
        if "/preupload/" in path:
            return 200, {"files": [_mode(file["path"]) for file in json.loads(body)["files"]]}
        if "/commit/" in path:
            return self._commit(repo, body)
        return 200, {"id": repo, "private": repo in self.private, "siblings": [], "tags": []}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != OWNER:
            return 403, {
                "error": f"You don't have the rights to create a model under {asked['organization']}"
            }
        if repo in self.repos:
            return 409, {"error": "You already created this model repo"}
        self.repos[repo] = {}
        if asked.get("private") or asked.get("visibility") == "private":
            self.private.add(repo)
        return 200, {"url": f"{self.url}/{repo}"}

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.url}/upload/{asked['oid']}"
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": {"href": href}}}

    def _commit(self, repo: str, body: bytes) -> tuple[int, Any]:
        if self.refuse_commits:
            return 500, {"error": "disk is full"}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.uploads[value["oid"]]
                assert sha256(content).hexdigest() == value["oid"] and len(content) == value["size"]
                self.repos[repo][value["path"]] = content
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{'0' * 40}", "commitOid": "0" * 40}

    def _handler(self) -> type[QuietHandler]:
        hub = self

        class Handler(QuietHandler):
            def _serve(self) -> None:
                token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
                status, answer = hub.answer(self.command, self.path.partition("?")[0], token, self.body())
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                if status == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = _serve

        return Handler


def _mode(path: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
