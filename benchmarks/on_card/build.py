"""What is built here, and the tests that are programs of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .bench import ROOT, SITE, Bench

BUILD = ROOT / "build" / "card" / "cmake"
SMALLEST = "each_kernel_computes_something_small"  # of test_cuda_kernels


def run(*command: str | os.PathLike[str], **environment: str) -> str:
    """What it prints, which is also printed here. Raises RuntimeError with its end where it fails."""
    print("$", " ".join(map(str, command)), flush=True)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=ROOT,
        env=os.environ | environment,
    )  # fmt: skip
    print(done.stdout, flush=True)
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-60:])
        raise RuntimeError(f"exit status {done.returncode} of {' '.join(map(str, command))}\n{end}")
    return done.stdout


def built() -> dict[str, Any]:
    """What an importable swsl says of its build, asked in a process of its own: what is imported here stays."""
    code = "import json, swsl.deploy.runner as r; print(json.dumps(r.build_info()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, env=os.environ
    )
    if done.returncode:
        return {"compiled": False, "reason": done.stderr[-2000:]}
    information: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return information


def package(bench: Bench) -> dict[str, Any]:
    """The package and the tests of kernels, in one tree, which a later call brings up to date. A rehearsal takes what is installed."""
    torch = find_spec("torch")
    assert torch is not None
    assert torch.submodule_search_locations
    on_card = bench.device == "cuda"
    tests = ["test_cuda_kernels_gpu", "test_packed_resample_gpu"] if on_card else []
    if not (BUILD / "build.ninja").exists() and not tests:
        before = built()
        if before.get("compiled"):
            return {"already there": True, **before}
    site = bench.work / SITE / "swsl_compiled"
    site.mkdir(parents=True, exist_ok=True)
    cores = str(len(os.sched_getaffinity(0)))
    run(
        "cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_INSTALL_PREFIX={site}",
        "-DCMAKE_INSTALL_LIBDIR=lib", f"-DPython_EXECUTABLE={sys.executable}", "-DSWSL_BUILD_PYTHON=ON", "-DSWSL_BUILD_APP=OFF",
        f"-DSWSL_BUILD_TESTS={'ON' if on_card else 'OFF'}", "-DSWSL_LIBTORCH=ON", f"-DSWSL_CUDA={'ON' if on_card else 'OFF'}",
        f"-DSWSL_TORCH_PREFIX={torch.submodule_search_locations[0]}",
    )  # fmt: skip
    targets = ["_C", "_libtorch", "swsl_without_decoders", *tests]
    # Without a libjpeg and a libpng there is nothing to be without.
    listed = run("ninja", "-C", BUILD, "-t", "targets", "all")
    targets = [name for name in targets if re.search(rf"^{name}: phony", listed, re.MULTILINE)]
    run("cmake", "--build", BUILD, "--parallel", cores, "--target", *targets)
    run("cmake", "--install", BUILD)
    (site / "source.txt").write_text(str(ROOT / "swsl"), "utf-8")
    after = built()
    if not after.get("compiled"):
        raise RuntimeError(f"what was built cannot be imported: {after.get('reason')}")
    if on_card and not after["cuda_kernels"]:
        raise RuntimeError(f"built without CUDA kernels: {after}")
    bench.expect(not on_card or after["nvjpeg"], "built without nvJPEG: no header of it here")
    return after


def _program(name: str) -> Path:
    return BUILD / "cpp" / "tests" / name


def kernel_test(bench: Bench, name: str) -> dict[str, Any]:
    """Of kernels on the card, against plain loops. A skip is a failure there."""
    if bench.device != "cuda":
        return {}
    text = run(_program(name))
    (summary,) = re.findall(r"^\d+ passed, .*$", text, re.MULTILINE)
    if ", 0 skipped" not in summary:
        raise RuntimeError(f"{summary}: on a card none may be\n{text[-2000:]}")
    return {"summary": summary}


def sanitizer(bench: Bench) -> dict[str, Any]:
    """Accesses out of bounds, races in shared memory, and warps that are not together."""
    if bench.device != "cuda":
        return {}
    tools = ("memcheck", "racecheck", "synccheck")
    for tool in tools:
        run(
            "compute-sanitizer",
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            _program("test_cuda_kernels_gpu"),
            SMALLEST,
        )
        bench.note(clean=tool)
    return {"tools": tools}


def test_file(bench: Bench, file: str) -> dict[str, Any]:
    """Of Python; each test that has ended is noted, should the file not come to its end."""
    strict = {"SWSL_REQUIRE_CUDA": "1"} if bench.device == "cuda" else {}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "cuda",
        file,
        "-v",
        "-rfE",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-o", "faulthandler_timeout=60"]
    print("$", " ".join(command), flush=True)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=ROOT,
        env=os.environ | strict,
    )  # fmt: skip
    counts: dict[str, int] = {}
    text = ""
    for line in process.stdout or ():
        print(line, end="", flush=True)
        text += line
        ended = re.match(rf"{re.escape(file)}::(.*) (PASSED|FAILED|ERROR|SKIPPED)", line)
        if ended:
            counts[ended[2].lower()] = counts.get(ended[2].lower(), 0) + 1
            if ended[2] in ("FAILED", "ERROR"):
                bench.note(failed=ended[1])
    status = process.wait()
    if status not in (0, 5 if bench.device != "cuda" else 0):
        raise RuntimeError(f"pytest ended with {status}, {counts}\n{text[-20000:]}")
    return counts
