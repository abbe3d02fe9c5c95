"""What the benchmarks share: the machine that a number depends on, weights, and the README's places for their tables."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from swsl.variants import create_model

ROOT = Path(__file__).resolve().parent.parent


def processor() -> str:
    """The CPU's name."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions(*packages: str) -> str:
    """Of Python and those of the packages that are installed."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def environment(threads: int, *packages: str) -> str:
    """One sentence: machine, threads, date and versions."""
    return (
        f"{processor()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''} in use, "
        f"{datetime.date.today().isoformat()}; {versions(*packages)}."
    )


def write_table(readme: Path, name: str, text: str) -> None:
    """Replaces what stands between the README's markers of this name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = readme.read_text("utf-8").split(begin)
    _, after = rest.split(end)
    readme.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def seeded(name: str) -> torch.nn.Module:
    """The variant with weights from a fixed seed, and BatchNorm statistics that change every activation."""
    torch.manual_seed(0)
    model = create_model(name, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.8, 1.2)  # type: ignore[union-attr]
    return model
