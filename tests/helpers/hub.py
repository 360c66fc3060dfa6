"""A small model hub on this machine, which notes every file that is downloaded."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(folder: Path, cache: Path, monkeypatch: Any) -> Iterator[list[str]]:
    """Serves `folder/owner/name` as the hub's model `owner/name`; yields the names of downloaded files."""
    downloaded: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, with_body: bool) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                model, kind = folder / parts[2] / parts[3], parts[4:5]
                files = sorted(path for path in model.rglob("*") if path.is_file())
                names = [path.relative_to(model).as_posix() for path in files]
                entries = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": digest(path)}
                    for name, path in zip(names, files, strict=True)
                ]
                about = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                body = json.dumps(entries if kind == ["tree"] else about).encode()
                found, headers = model.is_dir(), {"Content-Type": "application/json"}
            else:
                file = folder.joinpath(*parts[:2], *parts[4:])  # owner/name/resolve/commit/file
                found = file.is_file()
                body = file.read_bytes() if found else b""
                headers = {"ETag": f'"{digest(file)}"' if found else "", "X-Repo-Commit": COMMIT}
                if found and with_body:
                    downloaded.append("/".join(parts[4:]))
            self.send_response(200 if found else 404)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    try:
        yield downloaded
    finally:
        server.shutdown()
        server.server_close()


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
