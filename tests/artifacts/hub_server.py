"""A stand-in for the Hugging Face Hub on this machine: what the client asks for an upload and a download."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_standin"


class Hub:
    """The repositories of the stand-in.

    Attributes:
        files: content by repository and name.
        refuse: statuses to answer with, by a part of the path.
        asked: method and path of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.refuse: dict[str, int] = {}
        self.asked: list[tuple[str, str]] = []
        self.url = ""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """The stand-in, for the time of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_any(self) -> None:
            hub.asked.append((self.command, self.path))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            for part, status in hub.refuse.items():
                if part in self.path:
                    self.answer(status, {"error": "no"})
                    return
            if self.path.endswith("/whoami-v2"):
                known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                self.answer(200 if known else 401, {"name": "me", "type": "user", "orgs": [], "auth": {}})
            elif self.path.endswith("/repos/create"):
                asked = json.loads(body)
                name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
                hub.files.setdefault(name, {})
                self.answer(200, {"url": f"{hub.url}/{name}", "name": name, "id": name})
            elif self.path.endswith("/validate-yaml"):
                self.answer(200, {"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]
                self.answer(200, {"files": files})
            elif "/commit/" in self.path:
                name = self.path.split("/api/models/")[1].split("/commit/")[0]
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        value = entry["value"]
                        hub.files[name][value["path"]] = base64.b64decode(value["content"])
                self.answer(
                    200, {"commitUrl": f"{hub.url}/{name}/commit/0", "commitOid": "0" * 40, "hookOutput": ""}
                )
            elif "/resolve/" in self.path:
                name, _, rest = self.path.removeprefix("/").partition("/resolve/")
                content = hub.files.get(name, {}).get(rest.partition("/")[2])
                if content is None:
                    self.answer(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})
                else:
                    digest = hashlib.sha256(content).hexdigest()
                    self.answer(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": "0" * 40})
            else:
                name = self.path.removeprefix("/api/models/").partition("/revision")[0]
                self.answer(200 if name in hub.files else 404, {"id": name, "sha": "0" * 40, "siblings": []})

        do_GET = do_POST = do_HEAD = handle_any  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
