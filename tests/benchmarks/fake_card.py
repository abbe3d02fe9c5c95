"""A card's children without a card: the program that `test_card.py` starts. FAKE_CARD, a JSON object, has the keys of cases and how each
is to fail; with ", once" it is well the second time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from on_card.cases import Case, all_cases
from on_card.child import Work, serve


class FakeBench:
    lost = False

    def begin(self, note: Any) -> None:
        self.note = note

    def sound(self) -> bool:
        return not self.lost


def fail(way: str, bench: FakeBench, work: Path) -> None:
    print(f"about to fail: {way}", flush=True)
    bench.note(differs="seen before it failed")
    if way == "raises":
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nwith a second line")
    if way == "exits":
        sys.exit(7)
    if way == "ends quietly":
        os._exit(0)
    if way == "crashes":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "hangs":
        time.sleep(1000)
    if way == "loses the device":
        bench.lost = True
    if way == "waits for another":
        process = subprocess.Popen(["sleep", "1000"])
        (work / "sleeper").write_text(str(process.pid))
        process.wait()


def result(key: str) -> dict[str, Any]:
    if key == "environment: machine":
        return {"card": "Fake 100", "driver_version": "1.2", "packages": "torch 0"}
    if key.startswith("networks: "):
        return {"seconds": {"swsl": 2e-3, key.rpartition(" ")[2]: 3e-3}}
    if key.startswith("layers: "):
        ways = {"cuDNN fused": "no such kernel", "cuBLAS": 1e-4}
        return {
            "whole": 3e-3,
            "sum": 2e-3,
            "kinds": {"stage 1, 1×1": [1e-3, 5e-4]},
            "layers": [{"ways": ways}],
        }
    if key == "engine: two lanes":
        return {"alone": 2.0, "together": 1.0}
    if key == "preprocessing: rate":
        return {"images a second": 1e5, "of the bandwidth": 0.5, "whole call": 2e-3, "kernels": 1e-3}
    return {}


def find(case: Case) -> Work:
    ways: dict[str, str] = json.loads(os.environ["FAKE_CARD"])
    work = Path(os.environ["FAKE_CARD_WORK"])

    def do(bench: FakeBench) -> dict[str, Any]:
        way = ways.get(case.key, "")
        with (work / "asked.txt").open("a", encoding="utf-8") as asked:
            asked.write(f"{os.getpid()} {os.environ.get('CUDA_LAUNCH_BLOCKING', '0')} {case.key}\n")
        times = (work / "asked.txt").read_text("utf-8").count(f" {case.key}\n")
        if way == "differs":
            bench.note(differs="off by 1")
        elif way and (times == 1 or not way.endswith(", once")):
            fail(way.removesuffix(", once"), bench, work)
        return result(case.key)

    return do


if __name__ == "__main__":
    raise SystemExit(serve(all_cases(), FakeBench, find, int(sys.argv[1])))
