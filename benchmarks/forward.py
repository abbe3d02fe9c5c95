"""The forward pass on a CPU against the fastest alternatives: seeded weights, random images, the same threads.

    python benchmarks/forward.py --json forward.json                 # measures all rows; adds to the file
    python benchmarks/forward.py --json forward.json --only 50_32x4d --batches 1 --dtypes float32
    python benchmarks/forward.py --only timm:resnet50.a1_in1k torchvision:resnet18 --dtypes float32    # others' networks
    python benchmarks/forward.py --json forward.json --page docs/speed.md --rounds 0    # only writes the table

Every engine is a process of its own that stays loaded; they take turns, and a row is the median over the rounds. The file and
docs/speed.md keep the tables of other processors as they are; the README gets a row for each. Needs the compiled runner, and for the peers: pip install onnx
onnxscript onnxruntime openvino.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from swsl.deploy.export import export_model
from swsl.deploy.native import extension
from swsl.formats.golden import relative_error
from swsl.preprocess import PreprocessSpec
from swsl.variants import VARIANTS

ENGINES = ("swsl", "eager", "torchscript", "inductor", "onnxruntime", "openvino")
Forward = Callable[[], Tensor]


def prepare(name: str, folder: Path) -> None:
    """Writes model.pt, weights.pth, model.onnx, and for batches of 16: images.pt and logits.pt (eager, float32)."""
    model = report.seeded(name)
    export_model(model, folder / "model.pt", spec=PreprocessSpec())
    torch.save(model.state_dict(), folder / "weights.pth")
    images = torch.randn(16, 3, 224, 224)
    torch.save(images, folder / "images.pt")
    with torch.inference_mode():
        torch.save(model(images), folder / "logits.pt")
    try:
        torch.onnx.export(
            model, (images[:1],), str(folder / "model.onnx"), dynamo=False, input_names=["images"],
            output_names=["logits"], dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    except ImportError as error:
        print(f"no ONNX model, so no onnxruntime and openvino: {error}", file=sys.stderr)


def load(engine: str, name: str, folder: Path, images: Tensor, dtype: str, threads: int) -> Forward:
    """The engine, ready to run `images`. Raises ImportError or ValueError where it cannot compute in `dtype` here."""
    if engine == "swsl":
        from swsl.deploy.runner import Runner

        runner = Runner(folder / "model.pt", dtype=dtype, threads=threads, batch_size=len(images))
        if runner.info.name != "planned":
            raise ValueError(runner.info.reason)
        print(json.dumps({"engine": runner.info.reason}), flush=True)
        return lambda: runner.forward(images)
    if engine == "onnxruntime":
        import onnxruntime

        if dtype != "float32":
            raise ValueError("its CPU kernels do not compute convolutions in bfloat16")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_free_dimension_override_by_name("batch", len(images))
        session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        array = images.numpy()
        return lambda: torch.from_numpy(session.run(None, {"images": array})[0])
    if engine == "openvino":
        import openvino

        core = openvino.Core()
        graph = core.read_model(str(folder / "model.onnx"))
        graph.reshape(list(images.shape))
        precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
        compiled = core.compile_model(
            graph, "CPU",
            {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision},
        )  # fmt: skip
        request, array = compiled.create_infer_request(), images.numpy()
        return lambda: torch.from_numpy(request.infer([array])[0])

    model = report.seeded(name)
    model.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    images = images.to(getattr(torch, dtype)).contiguous(memory_format=torch.channels_last)
    module = model.to(getattr(torch, dtype)).to(memory_format=torch.channels_last)
    if engine == "torchscript":
        frozen = torch.jit.freeze(torch.jit.trace(module, images[:1]))
        fast = torch.jit.optimize_for_inference(frozen)
        return lambda: fast(images)
    if engine == "inductor":
        from torch._inductor import config

        config.freezing = True
        compiled_module = torch.compile(module)
        return lambda: compiled_module(images)
    return lambda: module(images)


def serve(arguments: argparse.Namespace) -> None:
    """A worker: loads, says how it did, then times itself whenever a line comes in."""
    torch.set_num_threads(arguments.threads)
    folder, batch = Path(arguments.folder), arguments.batches[0]
    images = torch.load(folder / "images.pt")[:batch]
    dtype = arguments.dtypes[0]
    with torch.inference_mode(arguments.worker != "inductor"), torch.no_grad():
        try:
            forward = load(arguments.worker, arguments.only[0], folder, images, dtype, arguments.threads)
            for _ in range(3):
                logits = forward()
        except (ImportError, ValueError) as error:
            print(json.dumps({"skip": str(error).splitlines()[0]}), flush=True)
            return
        error = relative_error(logits.float(), torch.load(folder / "logits.pt")[:batch])
        print(json.dumps({"error": error}), flush=True)
        for _ in sys.stdin:
            answer: dict[str, float] = {}
            if arguments.worker == "swsl":
                answer["peak"] = extension().peak_flops(dtype, arguments.threads)
            times = []
            forward()  # wakes threads that have gone to sleep
            end = time.perf_counter() + arguments.seconds
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                forward()
                times.append(time.perf_counter() - start)
            print(json.dumps(answer | {"seconds": statistics.median(times)}), flush=True)


def measure(name: str, batch: int, dtype: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: seconds per image of every engine, the peak, and the logits' errors."""
    workers: dict[str, subprocess.Popen[str]] = {}
    row: dict[str, Any] = {"seconds": {}, "errors": {}, "skipped": {}}
    for engine in arguments.engines:
        command = [
            sys.executable, __file__, "--worker", engine, "--folder", str(folder), "--only", name, "--batches", str(batch),
            "--dtypes", dtype, "--threads", str(arguments.threads), "--seconds", str(arguments.seconds),
        ]  # fmt: skip
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert worker.stdout
        line = worker.stdout.readline()
        if engine == "swsl" and "engine" in line:  # "… packed for avx2; …"
            row["instructions"] = json.loads(line)["engine"].split("packed for ")[1].split(";")[0]
            line = worker.stdout.readline()
        ready = json.loads(line) if line else {"skip": f"its process ended with {worker.wait()}"}
        if "skip" in ready:
            row["skipped"][engine] = ready["skip"]
            worker.wait()
        else:
            workers[engine] = worker
            row["errors"][engine] = ready["error"]
    rounds: dict[str, list[float]] = {engine: [] for engine in workers}
    peaks = []
    for _ in range(arguments.rounds):
        for engine, worker in workers.items():
            assert worker.stdin
            assert worker.stdout
            worker.stdin.write("go\n")
            worker.stdin.flush()
            answer = json.loads(worker.stdout.readline())
            rounds[engine].append(answer["seconds"] / batch)
            if "peak" in answer:
                peaks.append(answer["peak"])
    for worker in workers.values():
        worker.communicate()
    row["seconds"] = {engine: statistics.median(times) for engine, times in rounds.items()}
    row["peak"] = statistics.median(peaks) if peaks else None
    row["flops"] = flops(name)
    row["date"] = datetime.date.today().isoformat()
    row["rounds"] = arguments.rounds
    return row


def flops(name: str) -> int:
    """Of convolutions and the classifier, for one image of 224×224."""
    if name in VARIANTS:
        return 2 * VARIANTS[name].macs
    with FlopCounterMode(display=False) as counter:
        report.seeded(name)(torch.zeros(1, 3, 224, 224))
    return counter.get_total_flops()


def figures(row: dict[str, Any]) -> tuple[float, float, str]:
    """How many times as fast as the fastest peer, the share of the peak, and that peer's name."""
    peers = {engine: seconds for engine, seconds in row["seconds"].items() if engine != "swsl"}
    best = min(peers, key=peers.__getitem__)
    own = row["seconds"]["swsl"]
    return peers[best] / own, row["flops"] / own / row["peak"], best


def table(results: dict[str, Any]) -> str:
    """The page's table for one processor, in Markdown."""
    lines = [
        "| dtype | variant | batch | " + " | ".join(ENGINES) + " | against the fastest peer | of the peak |",
        "|---|---|---|" + "---|" * (len(ENGINES) + 2),
    ]
    for dtype in ("float32", "bfloat16"):
        ratios = []
        for key, row in results["rows"].items():
            name, batch, row_dtype = key.split()
            if row_dtype != dtype:
                continue
            ratio, share, _ = figures(row)
            ratios.append(ratio)
            cells = [f"{row['seconds'][e] * 1e3:.1f}" if e in row["seconds"] else "—" for e in ENGINES]
            cells[0] = f"**{cells[0]}**"
            variant = name.removeprefix("swsl_resnext")
            lines.append(
                f"| {dtype} ({row['instructions']}) | {variant} | {batch} | {' | '.join(cells)} | {ratio:.2f}× | {share:.0%} |"
            )
        if ratios:
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            lines.append(f"| {dtype} | geometric mean | |" + " |" * len(ENGINES) + f" **{mean:.2f}×** | |")
    lines += ["", results["environment"]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(VARIANTS),
        metavar="VARIANT",
        help="variants (default all), or others' networks as `swsl export --from` takes them",
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], metavar="N")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16")
    )
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7, help="0 measures nothing")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one engine's turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results are added to it")
    parser.add_argument("--page", type=Path, metavar="FILE", help="its table between the markers is replaced")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments)
        return
    processors: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        processors = json.loads(arguments.json.read_text("utf-8"))
    results: dict[str, Any] = processors.setdefault(report.processor(), {"rows": {}})
    if arguments.rounds:
        results["environment"] = report.environment(arguments.threads, "torch", "onnxruntime", "openvino")
    for wanted in arguments.only if arguments.rounds else []:
        name = wanted if wanted in VARIANTS or ":" in wanted else f"swsl_resnext{wanted}"
        with tempfile.TemporaryDirectory() as folder:
            prepare(name, Path(folder))
            for dtype in arguments.dtypes:
                for batch in arguments.batches:
                    row = measure(name, batch, dtype, Path(folder), arguments)
                    results["rows"][f"{name} {batch} {dtype}"] = row
                    shown = ", ".join(f"{e} {s * 1e3:.1f}" for e, s in row["seconds"].items())
                    ratio, share, best = figures(row)
                    print(
                        f"{name} batch {batch} {dtype}: {shown} ms; {ratio:.2f}× {best}; {share:.1%} of the peak",
                        flush=True,
                    )
                    for engine, why in row["skipped"].items():
                        print(f"  without {engine}: {why}", flush=True)
                    if arguments.json:
                        arguments.json.write_text(json.dumps(processors, indent=1) + "\n", "utf-8")
    order = [*VARIANTS, *sorted(name for key in results["rows"] if (name := key.split()[0]) not in VARIANTS)]
    results["rows"] = dict(
        sorted(
            results["rows"].items(),
            key=lambda item: (order.index(item[0].split()[0]), int(item[0].split()[1])),
        )
    )
    if results["rows"]:
        text = table(results)
        print(text)
        if arguments.page:
            report.write_table(arguments.page, "forward", text, part=report.processor())
            summary = report.summary(arguments.page.read_text("utf-8"))
            report.write_table(report.ROOT / "README.md", "summary", summary)


if __name__ == "__main__":
    main()
