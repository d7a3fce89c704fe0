"""A Hugging Face hub on this machine, for what is downloaded."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """A hub on this machine: `org/gated` asks for permission, `org/ok` is `files`, the rest does not exist."""

    files: Path
    asked: list[str]  # every request, as "GET model.safetensors", of whose header alone "in part"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        part = " in part" if "Range" in self.headers else ""
        self.asked.append(f"{self.command} {path.rpartition('/')[2]}{part}")
        if "org/ok" not in path:
            gated = "org/gated" in path
            self._send(403 if gated else 404, b"", {"X-Error-Code": "GatedRepo" if gated else "RepoNotFound"})
        elif path.startswith("/api/"):
            self._send(200, json.dumps(self._listing("/tree/" in path)).encode(), {})
        else:
            file = self.files / path.rpartition("/")[2]
            found = {"ETag": f'"{file.name}"'} if file.is_file() else {"X-Error-Code": "EntryNotFound"}
            body = file.read_bytes() if file.is_file() else b""
            self._send(200 if file.is_file() else 404, body, found | {"X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _listing(self, tree: bool) -> object:
        paths = sorted(self.files.iterdir())
        if tree:
            return [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40} for p in paths]
        siblings = [{"rfilename": p.name} for p in paths]
        return {"id": "org/ok", "sha": COMMIT, "gated": "auto", "cardData": {"license": "mit"}, "siblings": siblings}

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def serve(files: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub whose `org/ok` is `files`, and the requests it was sent, as they come."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"files": files, "asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
