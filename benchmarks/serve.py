"""`swsl serve` under load, against `Runner.stream` on the same images and cores.

    apt install wrk hey && pip install 'swsl[serve]'
    python benchmarks/serve.py --docs docs/scale.md

wrk keeps 1, 4, 16 and 64 requests under way until a number of answers have come, each with the bytes of another photograph, one in a hundred of them cut off in the
middle, which is answered with 400. In each round `Runner.stream` takes the same images before and after, in this process,
while the server has nothing to do. The client runs on the server's cores: its processor time is measured too. Then hey asks a
network so small that the server's own work is all of it, 20,000 times and more: every request has to be answered, and memory is
watched. Half of that is asked while other clients send a byte a second, or break off within a body.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import report
import torch
from folder import make_photographs

from swsl.deploy.export import export_model
from swsl.deploy.runner import Runner
from swsl.preprocess import PreprocessSpec
from swsl.resnext import ResNeXt

CLIENTS = (1, 4, 16, 64)
# wrk itself only ends after a time, with whatever is under way then; a signal ends it after a number of answers.
SCRIPT = """
local ffi = require("ffi")
ffi.cdef[[
  struct moment { long seconds, nanoseconds; };
  int clock_gettime(int, struct moment *);
  int getpid(void);
  int kill(int, int);
]]
local function now()
  local moment = ffi.new("struct moment")
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.seconds) + tonumber(moment.nanoseconds) / 1e9
end
local bodies, at, most, threads = {}, 0, 0, {}
function setup(thread) table.insert(threads, thread) end
function init(arguments)
  answered, count, first, last = {}, 0, 0, 0
  most = tonumber(table.remove(arguments, 1))
  for _, path in ipairs(arguments) do
    local file = assert(io.open(path, "rb"))
    table.insert(bodies, wrk.format("POST", nil, {["Content-Type"] = "image/jpeg"}, file:read("*a")))
    file:close()
  end
end
function request()
  if first == 0 then first = now() end
  at = at % #bodies + 1
  return bodies[at]
end
function response(status)
  answered[status] = (answered[status] or 0) + 1
  count = count + 1
  if count == most then
    last = now()
    ffi.C.kill(ffi.C.getpid(), 2)
  end
end
function done(summary, latency)
  local counts, thread = {}, threads[1]
  for status, count in pairs(thread:get("answered")) do
    table.insert(counts, string.format('"%d": %d', status, count))
  end
  local lost = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('\\n{"seconds": %f, "p50": %f, "p99": %f, "lost": %d, "answered": {%s}}\\n',
    thread:get("last") - thread:get("first"), latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, lost,
    table.concat(counts, ", ")))
end
"""


class Server:
    """The command, on a port of its own."""

    def __init__(self, model: Path, threads: int) -> None:
        command = [sys.executable, "-m", "swsl", "serve", str(model), "--port", "0", "--cores", str(threads)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        for line in self.process.stderr:
            if found := re.search(r"http://[^\s:]+:\d+", line):
                self.url = found[0]
                break
        else:
            raise RuntimeError("the server has ended")

    def memory(self) -> float:
        """Resident, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found
        return int(found[1]) * 1024 / 1e6

    def stop(self) -> None:
        self.process.terminate()
        if self.process.wait(60) != 0:
            raise RuntimeError(f"the server ended with {self.process.returncode}")


@contextlib.contextmanager
def serving(model: Path, threads: int) -> Iterator[Server]:
    server = Server(model, threads)
    try:
        yield server
        server.stop()
    finally:
        server.process.kill()


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ask(server: Server, script: Path, paths: list[str], clients: int, count: int) -> dict[str, float]:
    """One run of wrk, until ``count`` answers have come: its rate, latencies in ms, and its use of one core.

    Raises:
        RuntimeError: a request was not answered, or otherwise than with 200 or, the bad ones, 400.
    """
    before = children_seconds()
    command = [
        "wrk",
        "-t1",
        f"-c{clients}",
        "-d1h",
        "--timeout",
        "60s",
        "-s",
        script,
        f"{server.url}/classify",
        "--",
        count,
        *paths,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"wrk: {done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    used = children_seconds() - before
    # What was under way at the end is not left to whoever is measured next.
    urllib.request.urlopen(
        urllib.request.Request(f"{server.url}/classify", Path(paths[0]).read_bytes())
    ).read()
    answers = found["answered"]
    bad, expected = answers.get("400", 0), count / 100
    if found["lost"] or answers.keys() - {"200", "400"} or sum(answers.values()) < count:
        raise RuntimeError(f"requests were lost: {found}")
    if abs(bad - expected) > 2 + clients / 10:
        raise RuntimeError(f"{bad} of {count} were bad, expected about {expected:.0f}")
    return {
        "rate": count / found["seconds"], "p50": found["p50"], "p99": found["p99"], "client": used / found["seconds"],
    }  # fmt: skip


def stream_rate(runner: Runner, bodies: list[bytes], count: int) -> float:
    start = time.perf_counter()
    answers = sum(1 for _ in runner.stream(itertools.islice(itertools.cycle(bodies), count), top_k=5))
    return answers / (time.perf_counter() - start)


def repeat(server: Server, path: str, count: int, clients: int) -> subprocess.Popen[str]:
    command = ["hey", "-n", str(count), "-c", str(clients), "-t", "0", "-m", "POST", "-T", "image/jpeg", "-D", path, f"{server.url}/classify"]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def answered(hey: subprocess.Popen[str]) -> tuple[dict[int, int], float]:
    """How many answers of each status, and the 99th percentile of latency in ms."""
    text = hey.communicate()[0]
    if "Error distribution" in text or hey.returncode:
        raise RuntimeError(f"requests were lost:\n{text}")
    counts = {int(status): int(count) for status, count in re.findall(r"\[(\d+)\]\s+(\d+) responses", text)}
    late = re.search(r"99%+ in ([\d.]+) secs", text)  # which hey does not say of a few
    return counts, float(late[1]) * 1e3 if late else float("nan")


class Troublemakers:
    """Clients that send a byte a second, and clients that break off within a body, until they are stopped."""

    def __init__(self, url: str, body: bytes, slow: int = 32) -> None:
        self.address = (urlsplit(url).hostname, urlsplit(url).port)
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.over = threading.Event()
        self.broken = 0
        works = [self._break_off, *[self._dawdle] * slow]
        self.threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self.threads:
            thread.start()

    def _dawdle(self) -> None:
        with socket.create_connection(self.address) as connection, contextlib.suppress(OSError):
            for byte in self.request:
                connection.send(bytes([byte]))
                if self.over.wait(1):
                    return

    def _break_off(self) -> None:
        while not self.over.wait(0.02):
            with contextlib.suppress(OSError), socket.create_connection(self.address) as connection:
                # Closed with a reset, as by a client that has died.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(self.request[: len(self.request) // 2])
                self.broken += 1

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def many_requests(server: Server, good: str, bad: str, count: int, clients: int) -> tuple[float, float]:
    """``count`` requests, a multiple of ``clients``, and beside them one in a hundred bad ones: how many were answered a second,
    and in how many ms 99 in 100 of them."""
    start = time.perf_counter()
    both = repeat(server, good, count, clients), repeat(server, bad, count // 100, 1)
    (fine, late), (refused, _) = map(answered, both)
    if (fine, refused) != ({200: count}, {400: count // 100}):
        raise RuntimeError(f"expected one answer to each request, got {fine} and {refused}")
    return (count + count // 100) / (time.perf_counter() - start), late


def make_inputs(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Paths of 200 photographs, two of which are cut off, and the models: model.pt and tiny.pt."""
    paths = make_photographs(arguments.image, folder, 200, tuple(arguments.size))
    for path in paths[50::100]:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])
    export_model(report.seeded(arguments.variant), folder / "model.pt")
    torch.manual_seed(0)
    tiny = ResNeXt((1, 1, 1, 1), 2, 4, 10).eval()
    export_model(tiny, folder / "tiny.pt", spec=PreprocessSpec((32, 32)), labels=list("abcdefghij"))
    (folder / "wrk.lua").write_text(SCRIPT)
    return paths


def measure_rates(arguments: argparse.Namespace, folder: Path, paths: list[str]) -> list[str]:
    runner = Runner(folder / "model.pt", cores=arguments.threads)
    bodies = [Path(path).read_bytes() for path in paths]
    rounds: list[dict[int, dict[str, float]]] = []
    streamed: list[float] = []
    stream_rate(runner, bodies, 2 * runner.batch_size)
    count = round(stream_rate(runner, bodies, 4 * runner.batch_size) * arguments.seconds)
    count = max(round(count / runner.batch_size), 5) * runner.batch_size
    with serving(folder / "model.pt", arguments.threads) as server:
        ask(server, folder / "wrk.lua", paths, CLIENTS[-1], count)
        for _ in range(arguments.rounds):
            before = stream_rate(runner, bodies, count)
            found = {c: ask(server, folder / "wrk.lua", paths, c, count) for c in CLIENTS}
            streamed.append((before + stream_rate(runner, bodies, count)) / 2)
            for each in found.values():
                each["share"] = each["rate"] / streamed[-1]
            rounds.append(found)
            print("of the stream's rate:", *(f"{c}: {found[c]['share']:.3f}" for c in CLIENTS), flush=True)

    def median(clients: int, what: str) -> float:
        return statistics.median(each[clients][what] for each in rounds)

    load = statistics.median(each[64]["client"] for each in rounds) / arguments.threads
    return [
        "| clients | images/s | of `Runner.stream` | latency, median ms | 99 % below, ms | the client's share of the cores |",
        "|---|---|---|---|---|---|",
        *(f"| {c} | {median(c, 'rate'):.1f} | {median(c, 'share'):.2f} | {median(c, 'p50'):.0f} | {median(c, 'p99'):.0f} | "
          f"{median(c, 'client') / arguments.threads:.1%} |" for c in CLIENTS),
        f"| `Runner.stream` | {statistics.median(streamed):.1f} | 1 | | | |", "",
        f"{arguments.variant} with seeded weights, JPEG photographs of {arguments.size[0]}×{arguments.size[1]}, one in a hundred of them "
        f"cut off and refused; engine: {runner.info.name}, batches of {runner.batch_size} at most; medians of {arguments.rounds} "
        f"rounds of {count} images each in which they take turns. The client, wrk, runs on the same cores and takes "
        f"{load:.1%} of them at 64 clients.",
    ]  # fmt: skip


def measure_endurance(arguments: argparse.Namespace, folder: Path, paths: list[str]) -> list[str]:
    good, bad = paths[0], paths[50]
    first, half = (max(arguments.requests // share // 16, 1) * 16 for share in (10, 2))
    with serving(folder / "tiny.pt", arguments.threads) as server:
        many_requests(server, good, bad, first, 16)
        memory = [server.memory()]
        alone = many_requests(server, good, bad, half, 16)
        memory.append(server.memory())
        others = Troublemakers(server.url, Path(good).read_bytes())
        beside = many_requests(server, good, bad, half, 16)
        others.stop()
        memory.append(server.memory())
    return [
        "| a network of no size, 16 clients | requests/s | 99 % below, ms | server's memory afterwards |",
        "|---|---|---|---|",
        f"| after the first {first:,} requests | | | {memory[0]:.0f} MB |",
        f"| {half:,} more, alone | {alone[0]:.0f} | {alone[1]:.0f} | {memory[1]:.0f} MB |",
        f"| {half:,} more, beside 32 clients of a byte a second and {others.broken:,} that broke off | {beside[0]:.0f} | "
        f"{beside[1]:.0f} | {memory[2]:.0f} MB |", "",
        "Every request was answered: the photographs with 200, those cut off with 400.",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    image = report.ROOT / "swsl" / "cli" / "chelsea.jpg"
    parser.add_argument("--image", type=Path, default=image, help="what is cropped")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 392), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--variant", default="swsl_resnext50_32x4d")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores, of both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="of each run, about")
    parser.add_argument("--requests", type=int, default=20_000, help="of the tiny network")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="its table between the markers is replaced")
    arguments = parser.parse_args()
    if missing := [program for program in ("wrk", "hey") if not shutil.which(program)]:
        parser.error(f"needs {' and '.join(missing)}: apt install wrk hey")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        paths = make_inputs(arguments, Path(name))
        lines = [
            *measure_rates(arguments, Path(name), paths), "", *measure_endurance(arguments, Path(name), paths), "",
            f"Load average before: {load:.1f}. "
            + report.environment(arguments.threads, "torch", "pillow", "fastapi", "uvicorn", "uvloop", "httptools"),
        ]  # fmt: skip
    print("\n".join(lines))
    if arguments.docs:
        report.write_table(arguments.docs, "serve", "\n".join(lines))


if __name__ == "__main__":
    main()
