"""The command as a process: its port, its signals, and clients that are slow, broken or gone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run, seed_model, subprocess_environment, swsl_command

import swsl

pytestmark = pytest.mark.slow  # the packages are of the extra `serve`
for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(package, reason="the server needs the extra `serve`: pip install '.[serve]'")

PHOTO = (ROOT / "swsl" / "cli" / "chelsea.jpg").read_bytes()
HEAD = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PHOTO)}\r\n\r\n".encode()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "tiny.pt"
    network = seed_model(swsl.ResNeXt((1, 1, 1, 1), groups=2, width_per_group=4, num_classes=5))
    swsl.export_model(network, path, spec=swsl.PreprocessSpec(input_size=(64, 64)), labels="ABCDE")
    return path


@dataclass
class Served:
    process: subprocess.Popen[str]
    port: int

    def post(self, body: bytes = PHOTO, path: str = "/classify") -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body)
        request.add_header("Content-Type", "image/jpeg")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=120)

    def end(self, number: int = signal.SIGTERM) -> str:
        """What it said, of a process that ends in order."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, said
        return said


@contextlib.contextmanager
def serving(file: Path, *options: str, code: str = "") -> Iterator[Served]:
    """Args: code: Python that the process runs first."""
    start = f"{code}\nimport sys\nfrom swsl.cli.main import main\nsys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", start, "serve", str(file), "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=subprocess_environment(PYTHONFAULTHANDLER="1"),
    )
    assert process.stderr
    try:
        for line in process.stderr:
            if found := re.search(r"http://127.0.0.1:(\d+)", line):
                break
        else:
            pytest.fail(f"it ended with {process.wait()}")
        yield Served(process, int(found[1]))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


SLOW = """
import time
from swsl.deploy.batching import DynamicBatcher
sources = DynamicBatcher._sources
def slowly(batcher):
    for source in sources(batcher):
        time.sleep(0.1)
        yield source
DynamicBatcher._sources = slowly
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered_at_the_end(file: Path, number: int) -> None:
    with serving(file, code=SLOW) as served, ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(served.post) for _ in range(20)]
        half = served.connection()  # which is not accepted yet
        half.sendall(HEAD + PHOTO[:100])
        wait_for_images(served, 20)
        served.end(number)
        assert [answer.result()[0] for answer in answers] == [200] * 20
        head = half.recv(1 << 16)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"the server is closing" in head
        with pytest.raises(OSError):  # noqa: PT011
            served.connection()


def test_a_second_signal_ends_it_at_once(file: Path) -> None:
    with serving(file, code=SLOW.replace("0.1", "60")) as served, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(served.post)
        wait_for_images(served, 0)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert served.process.poll() is None
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == -signal.SIGTERM
        assert isinstance(answer.exception(60), OSError)


def wait_for_images(served: Served, count: int) -> None:
    """Until so many requests have come, which the server itself tells only afterwards: their connections have been read empty."""
    deadline = time.monotonic() + 60
    while established(served.port) < count + 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)


def established(port: int) -> int:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    local = f":{port:04X}"
    return sum(line.split()[1].endswith(local) and line.split()[3] == "01" for line in lines)


def test_slow_and_broken_clients_stop_nobody(file: Path) -> None:
    with serving(file, "--max-queue", "4") as served, contextlib.ExitStack() as stack:
        stop = threading.Event()

        def trickle(text: bytes) -> None:
            with contextlib.suppress(OSError), served.connection() as connection:
                for at in range(len(text)):
                    if stop.wait(0.2):
                        return
                    connection.sendall(text[at : at + 1])

        pool = stack.enter_context(ThreadPoolExecutor(24))
        stack.callback(stop.set)
        for _ in range(8):  # more than the queue has places
            pool.submit(trickle, HEAD)
            pool.submit(trickle, HEAD + PHOTO)
            silent = stack.enter_context(served.connection())
            half = stack.enter_context(served.connection())
            half.sendall(HEAD + PHOTO[:1000])
            assert silent
        for turn in range(30):
            with served.connection() as gone:  # amid its body, or with its answer under way
                gone.sendall(HEAD + (PHOTO if turn % 2 else PHOTO[:1000]))
            with served.connection() as nonsense:
                nonsense.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    assert nonsense.recv(100).startswith(b"HTTP/1.1 400")
            assert served.post()[0] == 200
            assert served.post(b"no image")[0] == 400
        stop.set()
        served.end()


def test_large_bodies_are_refused_before_they_have_come(file: Path) -> None:
    with serving(file, "--max-bytes", "100000") as served:
        for head in ("Content-Length: 99999999999", "Transfer-Encoding: chunked"):
            with served.connection() as connection:
                connection.sendall(f"POST /classify HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
                if "chunked" in head:
                    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
                    connection.sendall(chunk * 2)
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
        assert served.post(b"x" * 3_000_000) == (413, {"error": "body: expected at most 100000 bytes"})
        assert served.post()[0] == 200
        served.end()


def test_a_full_queue(file: Path) -> None:
    with (
        serving(file, "--max-queue", "2", "--max-batch", "1", code=SLOW) as served,
        ThreadPoolExecutor(30) as pool,
    ):
        found = [status for status, _ in pool.map(lambda _: served.post(), range(30))]
        assert set(found) == {200, 503}
        assert served.post()[0] == 200
        served.end()


def test_memory_does_not_grow(file: Path) -> None:
    with serving(file) as served, ThreadPoolExecutor(8) as pool:

        def some(count: int) -> int:
            bodies = [PHOTO if number % 10 else PHOTO[:5000] + b"x" for number in range(count)]
            statuses = [status for status, _ in pool.map(served.post, bodies)]
            assert set(statuses) <= {200, 400}
            lines = Path(f"/proc/{served.process.pid}/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

        before = some(300)
        assert some(1000) < before + 30_000  # KB; the photographs alone are 50 MB
        served.end()


def test_a_busy_port_is_told_before_the_model_is_read(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run(*swsl_command("serve", tmp_path / "none.pt", "--port", port), code=1)
        assert done.stderr == f"swsl: error: --port: 127.0.0.1:{port} cannot be had: {os.strerror(98)}\n"


def test_a_host_that_is_none_of_ours(tmp_path: Path) -> None:
    done = run(*swsl_command("serve", tmp_path / "none.pt", "--host", "nosuch.invalid"), code=1)
    assert done.stderr.startswith(
        "swsl: error: --host: 'nosuch.invalid' is no name or address of this machine"
    )


def test_wrong_usage(file: Path, tmp_path: Path) -> None:
    for options in (["--port", "65536"], ["--port", "x"], ["--max-wait-ms", "-1"], ["--max-queue", "0"]):
        assert f"argument {options[0]}: " in run(*swsl_command("serve", file, *options), code=2).stderr
    assert "none.pt" in run(*swsl_command("serve", tmp_path / "none.pt", "--port", 0), code=1).stderr


def test_missing_packages_are_named(file: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from swsl.cli.main import main; sys.exit(main())"
    done = run(sys.executable, "-c", code, "serve", file, "--port", 0, code=1)
    assert "uvicorn" in done.stderr
    assert "pip install 'swsl[serve]'" in done.stderr
