"""What the benchmarks share: the machine that a number depends on, weights, and the places for their tables in docs/."""

from __future__ import annotations

import datetime
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from swsl.cli.foreign import load_foreign
from swsl.variants import create_model

ROOT = Path(__file__).resolve().parent.parent


def processor() -> str:
    """The CPU's name and its family's, which a virtual machine's name often lacks: "AMD EPYC (Zen 3)"."""
    path = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    family = processor_family(facts)
    return f"{name} ({family})" if family else name


def processor_family(facts: dict[str, str]) -> str:
    """By what /proc/cpuinfo says of an x86 processor; "" of others."""
    if not {"vendor_id", "cpu family", "model"} <= facts.keys():
        return ""
    vendor, family, model = facts["vendor_id"], int(facts["cpu family"]), int(facts["model"])
    if vendor == "AuthenticAMD" and family == 25:  # Zen 3's models and Zen 4's are in turns
        return "Zen 4" if "avx512f" in facts.get("flags", "").split() else "Zen 3"
    known = {
        ("AuthenticAMD", 26): "Zen 5",
        ("GenuineIntel", 6, 85): "Skylake-SP, Cascade Lake or Cooper Lake",
        ("GenuineIntel", 6, 106): "Ice Lake",
        ("GenuineIntel", 6, 143): "Sapphire Rapids",
        ("GenuineIntel", 6, 173): "Granite Rapids",
        ("GenuineIntel", 6, 207): "Emerald Rapids",
    }
    return (
        known.get((vendor, family)) or known.get((vendor, family, model)) or f"family {family}, model {model}"
    )


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


def write_table(page: Path, name: str, text: str, part: str = "") -> None:
    """Replaces what stands between a page's markers of this name; with ``part``, only that part of it, which is added
    where there is none."""
    before, inside, after = _split(page.read_text("utf-8"), name)
    if part:
        markers = f"{name}, {part}"
        if f"<!-- {markers}:begin -->" not in inside:
            inside += f"\n<!-- {markers}:begin -->\n<!-- {markers}:end -->\n"
        first, _, last = _split(inside, markers)
        text = f"{first}\n{text}\n{last}"
    else:
        text = f"\n{text}\n"
    page.write_text(before + text + after, "utf-8")


def summary(speed: str) -> str:
    """The README's table: a row for each processor, from the forward passes' tables in docs/speed.md."""
    lines = [
        "| processor | float32 | against the fastest | bfloat16 | against the fastest | measured |",
        "|---|---|---|---|---|---|",
    ]
    for name in re.findall(r"<!-- forward, (.*):begin -->", speed):
        text = _split(speed, f"forward, {name}")[1]
        cells = [name]
        for dtype in ("float32", "bfloat16"):
            for pattern in (
                r"[^|]*\| 50_32x4d \| 1 \| \*\*([\d.]+)\*\*",
                r" \| geometric mean \|.*\*\*([\d.]+×)\*\*",
            ):
                found = re.search(rf"^\| {dtype}{pattern}", text, re.MULTILINE)
                cells.append(found[1] if found else "–")
        (measured,) = re.findall(r"^\S.* (\d+) threads in use, (\d{4}-\d\d-\d\d);", text, re.MULTILINE)
        lines.append("| " + " | ".join([*cells, f"{measured[0]} threads, {measured[1]}"]) + " |")
    return "\n".join(lines)


def _split(text: str, name: str) -> tuple[str, str, str]:
    """Up to a marker, from there to the next, and the rest; both markers are outside the middle."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = text.split(begin)
    inside, after = rest.split(end)
    return before + begin, inside, end + after


def seeded(name: str) -> torch.nn.Module:
    """The variant, or another's network (`timm:NAME`, `torchvision:NAME`), with weights from a fixed seed, and BatchNorm statistics
    that change every activation."""
    torch.manual_seed(0)
    if ":" in name:
        model = load_foreign(name, pretrained=False).model.eval()
    else:
        model = create_model(name, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.8, 1.2)  # type: ignore[union-attr]
    return model
