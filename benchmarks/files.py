"""The runner on a `.pt2` against a `.pt` of the same model: loading, and forward passes. They take turns.

python benchmarks/files.py                        # the smallest variant, float32
python benchmarks/files.py --only 101_32x8d --rounds 9
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import report
import torch

from swsl.deploy.export import export_model
from swsl.deploy.runner import Runner

SUFFIXES = (".pt", ".pt2")


def timed(runner: Runner, batch: torch.Tensor, passes: int) -> float:
    """Seconds of one forward pass, a median."""
    times = []
    for _ in range(passes):
        start = time.perf_counter()
        runner.forward(batch)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="50_32x4d", metavar="VARIANT")
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--passes", type=int, default=20, help="in one turn")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    name = f"swsl_resnext{arguments.only}"
    batch = torch.randn(arguments.batch, 3, 224, 224)
    seconds: dict[str, dict[str, list[float]]] = {
        what: {suffix: [] for suffix in SUFFIXES} for what in ("load", "forward")
    }
    with tempfile.TemporaryDirectory() as folder:
        model = report.seeded(name)
        for suffix in SUFFIXES:
            export_model(model, Path(folder, f"model{suffix}"))
        for turn in range(arguments.rounds + 1):
            for suffix in SUFFIXES if turn % 2 else SUFFIXES[::-1]:
                start = time.perf_counter()
                runner = Runner(Path(folder, f"model{suffix}"))
                loaded = time.perf_counter() - start
                forward = timed(runner, batch, arguments.passes)
                runner.close()
                if turn:  # the first reads the files into the system's cache
                    seconds["load"][suffix].append(loaded)
                    seconds["forward"][suffix].append(forward)
    for what, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(found[".pt"], found[".pt2"], strict=True))
        times = ", ".join(f"{suffix} {statistics.median(found[suffix]) * 1e3:.1f} ms" for suffix in SUFFIXES)
        print(f"{name} {what}: {times}; .pt2 is {ratio:.2f} times as fast")
    print(report.environment(torch.get_num_threads(), "torch"))


if __name__ == "__main__":
    main()
