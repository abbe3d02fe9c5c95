"""Builds the compiled runner through CMake; pyproject.toml has everything else.

The core builds without torch. Its LibTorch part (float16, CUDA) is tried after it where torch can be imported, which is with
``--no-build-isolation``, and left out with a reason where it cannot be built: beside the core as ``_libtorch.json``, for
`swsl.deploy.runner.build_info` and ``swsl demo``. A machine without a compiler still gets the package: the reason is kept in
``_build_failure.txt``, and `swsl.Runner(...)` shows it.

Environment: SWSL_BUILD=0 skips all this, SWSL_BUILD=1 makes what fails an error; CMAKE_ARGS is passed to CMake.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import setuptools

# Older ones do not read pyproject.toml's licence, which they would say after minutes of compiling.
if int((found := setuptools.__version__).split(".")[0]) < 77:
    raise SystemExit(f"swsl: setuptools 77 or later expected, found {found}: pip install -U setuptools")

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / f"python-{sys.implementation.cache_tag}"
FAILURE = "_build_failure.txt"
LIBTORCH_RECORD = "_libtorch.json"  # by CMake where that part is built
PLACES = ("include", "lib", "share", LIBTORCH_RECORD, FAILURE)  # filled beside _C*.so and _libtorch*.so


def compile_runner() -> Path:
    """Configures, compiles and installs into a staging folder, which is returned. Raises what went wrong."""
    stage = BUILD / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    mode = os.environ.get("SWSL_BUILD", "")
    if mode not in ("", "0", "1"):
        raise SystemExit(f"SWSL_BUILD: expected 0 or 1, got {mode!r}")
    try:
        if mode == "0":
            raise RuntimeError("SWSL_BUILD=0 was set")
        build(stage, "-DSWSL_LIBTORCH=OFF")
    except (OSError, RuntimeError) as error:
        if mode == "1":
            raise
        shutil.rmtree(stage)
        stage.mkdir()
        (stage / FAILURE).write_text(f"{error}\n", "utf-8")
        print(f"swsl: installing without the compiled runner: {error}", file=sys.stderr)
        return stage
    left_out = add_libtorch_part(stage, mode == "1")
    if left_out:
        print(f"swsl: installing without: {left_out}", file=sys.stderr)
    return stage


def add_libtorch_part(stage: Path, must: bool) -> str:
    """The same with the LibTorch part, at first with CUDA's. Returns what was left out and why, "" if nothing was."""
    record = stage / LIBTORCH_RECORD
    torch = find_spec("torch")
    if torch is None or not torch.submodule_search_locations:
        left_out = "the LibTorch part: no torch to build it with, as there is with --no-build-isolation alone"
        record.write_text(json.dumps({"left_out": left_out}), "utf-8")
        return left_out
    options = ("-DSWSL_LIBTORCH=ON", f"-DSWSL_TORCH_PREFIX={torch.submodule_search_locations[0]}")
    try:
        build(stage, *options)
        return str(json.loads(record.read_text("utf-8"))["left_out"])
    except (OSError, RuntimeError) as error:
        if must:
            raise
        left_out = f"CUDA kernels: {error}"
    try:
        build(stage, *options, "-DSWSL_NVCC=OFF")
        made = json.loads(record.read_text("utf-8"))
    except (OSError, RuntimeError) as error:
        made, left_out = {}, f"the LibTorch part: {error}"
    record.write_text(json.dumps({**made, "left_out": left_out}), "utf-8")
    return left_out


def build(stage: Path, *options: str) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        raise RuntimeError("no cmake on PATH: pip install cmake ninja pybind11")
    # What an earlier build was given in CMAKE_ARGS, or found in an environment that pip has since deleted, is not asked for now.
    (BUILD / "cmake" / "CMakeCache.txt").unlink(missing_ok=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run(
        cmake, "-S", str(ROOT), "-B", str(BUILD / "cmake"), *generator, f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_INSTALL_PREFIX={stage}", "-DCMAKE_INSTALL_LIBDIR=lib", "-DCMAKE_BUILD_TYPE=Release",
        "-DSWSL_BUILD_PYTHON=ON", "-DSWSL_BUILD_APP=OFF", "-DSWSL_BUILD_TESTS=OFF", *options,
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    )  # fmt: skip
    run(cmake, "--build", str(BUILD / "cmake"), "--parallel", str(cores()))
    run(cmake, "--install", str(BUILD / "cmake"), "--strip")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(*command: str) -> None:
    """A step of the build; its output is shown, and its end is part of the error."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    print(done.stdout, file=sys.stderr)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        name = Path(command[0]).name
        raise RuntimeError(
            f"{name} failed with exit code {done.returncode}:\n{tail}\nof {shlex.join(command)}"
        )


def remove_compiled(package: Path) -> None:
    for old in (*(package / place for place in PLACES), *package.glob("_*.so")):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)


class CMakeBuild(build_ext):
    """Copies what CMake built into the package. An editable installation's is the source tree, and what lay there pip would not know
    and leave behind: it goes into the wheel that pip unpacks, as the folder swsl_compiled, which swsl/deploy/native.py looks for."""

    def run(self) -> None:
        stage = compile_runner()
        package = ROOT / "swsl" if self.inplace else Path(self.build_lib, "swsl")
        remove_compiled(package)
        if self.editable_mode:
            package = Path(self.get_finalized_command("install").install_lib, "swsl_compiled")
            (stage / "source.txt").write_text(str(ROOT / "swsl"), "utf-8")
        shutil.copytree(stage, package, dirs_exist_ok=True)

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Sources(sdist):
    """Without setuptools' list of them, which is made in build/ here."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, [file for file in files if Path(file).parts[0] != "build"])


BUILD.mkdir(parents=True, exist_ok=True)
setup(
    ext_modules=[Extension("swsl._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "sdist": Sources},
    # In the checkout itself, Python would take swsl for installed whenever it is started there.
    options={"egg_info": {"egg_base": str(BUILD.relative_to(ROOT))}},
)
