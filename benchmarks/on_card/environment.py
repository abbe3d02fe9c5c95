"""What the machine is, and what it can do at best."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

import torch

from .bench import Bench

PACKAGES = (
    "torch", "torchvision", "triton", "numpy", "pillow", "pybind11", "cmake", "ninja", "pytest", "timm",
    "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-nvjpeg", "torch-tensorrt", "tensorrt", "nvidia-dali-cuda130",
)  # fmt: skip
QUERY = (
    "name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "pstate",
    "clocks_event_reasons.active", "ecc.mode.current", "mig.mode.current", "temperature.gpu", "pcie.link.gen.current",
)  # fmt: skip


def said(*command: str) -> str:
    """What a program prints, or why it does not."""
    if shutil.which(command[0]) is None:
        return "not installed"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout + done.stderr).strip()


def machine(bench: Bench) -> dict[str, Any]:
    import report

    found: dict[str, Any] = {
        "processor": report.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": sys.version.split()[0],
        "packages": report.versions(*PACKAGES),
        "cuda of torch": str(torch.version.cuda),
        "nvcc": said("nvcc", "--version").splitlines()[-1],
        "sanitizer": said("compute-sanitizer", "--version").splitlines()[0],
        "module loading": os.environ.get("CUDA_MODULE_LOADING", "not set"),
    }
    if bench.device != "cuda":
        return found | {"card": "none"}
    values = said("nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader").split(", ")
    if len(values) == len(QUERY):
        found |= dict(zip(QUERY, values, strict=True))
    else:
        bench.differs(f"nvidia-smi: {', '.join(values)[:200]}")
    properties = torch.cuda.get_device_properties(0)
    found |= {
        "card": properties.name,
        "cards": torch.cuda.device_count(),
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "L2, MB": properties.L2_cache_size / 2**20,
        "memory, GB": properties.total_memory / 1e9,
        "cuDNN": torch.backends.cudnn.version(),
        "matrices' own kernels": torch.cuda.get_arch_list(),
    }
    expected = properties.major * 10 + properties.minor
    bench.expect(
        expected >= 75, f"compute capability {expected / 10}: our kernels are compiled for 7.5 and later"
    )
    return found


def rates(bench: Bench) -> dict[str, Any]:
    """What bounds are computed with."""
    found: dict[str, Any] = dict(bench.rates())
    if bench.device != "cuda":
        return found
    for dtype in ("bfloat16", "float32"):
        a = torch.randn(4096, 4096, device="cuda").to(getattr(torch, dtype))
        found[f"matrix in {dtype}"] = 2 * 4096**3 / bench.seconds(lambda a=a: a @ a)  # type: ignore[misc]
    one = torch.zeros(1, device="cuda")
    many = 500

    def additions() -> None:
        for _ in range(many):
            one.add_(1)

    additions()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        additions()
    found["gap in a graph"] = bench.seconds(graph.replay) / many
    found["gap without"] = bench.seconds(additions) / many
    pinned = torch.empty(1 << 26, dtype=torch.uint8).pin_memory()
    there = torch.empty(1 << 26, dtype=torch.uint8, device="cuda")
    found["to the card"] = (1 << 26) / bench.seconds(lambda: there.copy_(pinned, non_blocking=True))
    return found
