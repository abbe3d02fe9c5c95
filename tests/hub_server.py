"""A server on this machine that answers as the Hugging Face Hub does."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import sys
import threading
from pathlib import Path

from conftest import subprocess_environment

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories by their names: the bytes of each file, at branch main."""

    def __init__(self, cache: Path) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                repository, _, place = self.path[1:].partition("/resolve/")
                revision, _, name = place.partition("/")
                files = hub.repositories.get(repository)
                data = None if files is None else files.get(name)
                error = "RepoNotFound" if files is None else "EntryNotFound" if data is None else ""
                if files is not None and revision not in ("main", COMMIT):
                    error = "RevisionNotFound"
                body = b"" if error or data is None else data
                self.send_response(404 if error else 200)
                headers = {
                    "Content-Length": len(body),
                    "ETag": f'"{hashlib.sha1(body).hexdigest()}"',
                    "X-Error-Code": error,
                    "X-Repo-Commit": COMMIT,
                }
                for header, value in headers.items():
                    if value != "":
                        self.send_header(header, str(value))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        # As a user says where a Hub is; huggingface_hub reads it when it is imported.
        self.environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def run(self, code: str, *names: str, **environment: str) -> list[str]:
        """The lines that a process prints of models by their names on the Hub."""
        done = subprocess.run(
            [sys.executable, "-c", code, *(f"hf-hub:{name}" for name in names)],
            capture_output=True,
            text=True,
            env=subprocess_environment(**self.environment, **environment),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
