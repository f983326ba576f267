"""A Hugging Face of our own: serves one folder as a repository, on this machine."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves `folder` as `repository`; `org/gated` and everything else are refused.

    Of weights the sha256 is told, as Hugging Face does; `wrong` sums are those of other files.
    """

    daemon_threads = True

    def __init__(self, folder: Path, break_at: int | None = None, repository: str = "org/tiny"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.break_at, self.repository = folder, break_at, repository
        self.wrong, self.architecture = False, ""
        self.ranges: list[str] = []
        self.fetched: list[str] = []

    @property
    def address(self) -> str:
        """What HF_ENDPOINT should be."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments) -> None:
        """Be quiet."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if "org/gated" in path:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
        name = self.server.repository
        if name not in path:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        if path.startswith("/api/models/"):
            files = [self._about(file) for file in sorted(self.server.folder.iterdir())]
            about = {"id": name, "modelId": name, "sha": COMMIT, "siblings": files}
            if self.server.architecture:
                about["gguf"] = {"architecture": self.server.architecture}
            return self._send(200, json.dumps(about).encode(), {}, with_body)
        data = (self.server.folder / path.rpartition("/")[2]).read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if not with_body:
            return self._send(200, data, headers, with_body)
        self.server.fetched.append(path.rpartition("/")[2])
        if wanted := self.headers.get("Range"):
            self.server.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(206, data[start:], headers, with_body)
        return self._send(200, data, headers, with_body)

    def _about(self, file: Path) -> dict:
        size = file.stat().st_size
        about = {"rfilename": file.name, "size": size}
        if file.suffix in (".gguf", ".safetensors"):
            sha256 = hashlib.sha256(file.read_bytes() + b"!" * self.server.wrong).hexdigest()
            about["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
        return about

    def _send(self, code: int, data: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not with_body:
            return
        limit = self.server.break_at
        if limit is not None and len(data) > limit:
            self.server.break_at = None  # the line breaks once
            data = data[:limit]
            self.close_connection = True
        self.wfile.write(data)


@contextmanager
def serving(folder: Path, break_at: int | None = None, repository: str = "org/tiny"):
    """A running hub."""
    hub = Hub(folder, break_at, repository)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
