"""Builds the compiled runner through CMake; pyproject.toml has everything else.

A machine without a compiler, or a build that fails, still gets the package: the reason is kept beside it, and
`swsl.Runner(...)` shows it. The requirement on torch depends on the outcome: binaries run with the torch that they were built
with and no other.

Environment: SWSL_BUILD=0 skips the compiled runner, SWSL_BUILD=1 makes its failure an error; CMAKE_ARGS is passed to CMake.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / f"python-{sys.implementation.cache_tag}"
FAILURE = "_build_failure.txt"
PLACES = (
    "include",
    "lib",
    "share",
    "_build.json",
    FAILURE,
)  # that this file fills in the package, besides _C*.so
ANY_TORCH = "torch>=2.8"


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
        torch = find_spec("torch")
        if torch is None or not torch.submodule_search_locations:
            raise RuntimeError(
                "torch was not there when swsl was built (pip install --no-build-isolation needs it)"
            )
        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("no cmake on PATH: pip install cmake ninja")
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        run(
            cmake, *fresh_if_stale(), "-S", str(ROOT), "-B", str(BUILD / "cmake"), *generator,
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSWSL_TORCH_PREFIX={torch.submodule_search_locations[0]}",
            f"-DCMAKE_INSTALL_PREFIX={stage}", "-DCMAKE_INSTALL_LIBDIR=lib", "-DCMAKE_BUILD_TYPE=Release",
            "-DSWSL_BUILD_PYTHON=ON", "-DSWSL_BUILD_APP=OFF", "-DSWSL_BUILD_TESTS=OFF",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        )  # fmt: skip
        run(cmake, "--build", str(BUILD / "cmake"), "--parallel", str(len(os.sched_getaffinity(0))))
        run(cmake, "--install", str(BUILD / "cmake"), "--strip")
    except (OSError, RuntimeError) as error:
        if mode == "1":
            raise
        shutil.rmtree(stage)
        stage.mkdir()
        (stage / FAILURE).write_text(f"{error}\n", "utf-8")
        print(f"swsl: installing without the compiled runner: {error}", file=sys.stderr)
    return stage


def fresh_if_stale() -> list[str]:
    """An option for CMake where the cache of an earlier build names programs of an environment that pip has since deleted. Within
    one pip command the cache is good, which spares compiling twice: for the metadata and for the wheel."""
    cache = BUILD / "cmake" / "CMakeCache.txt"
    if not cache.is_file():
        return []
    entries = dict(re.findall(r"^(\w+):\w+=(.*)$", cache.read_text(), re.MULTILINE))
    programs = [
        Path(entries.get(name, "")) for name in ("CMAKE_MAKE_PROGRAM", "CMAKE_COMMAND", "SWSL_TORCH_PREFIX")
    ]
    same_tree = entries.get("CMAKE_HOME_DIRECTORY") == str(ROOT)  # not a copy of a tree that was built in
    return [] if same_tree and all(program.exists() for program in programs) else ["--fresh"]


def run(*command: str) -> None:
    """A step of the build; its output is shown, and its end is part of the error."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    print(done.stdout, file=sys.stderr)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        raise RuntimeError(f"{shlex.join(command)} failed with exit code {done.returncode}:\n{tail}")


def torch_requirement(stage: Path) -> str:
    if (stage / FAILURE).exists():
        return ANY_TORCH
    from importlib.metadata import version

    return f"torch=={version('torch').split('+')[0]}"


class CMakeBuild(build_ext):
    """Copies what CMake built into the package: the wheel's, or the source tree's for an editable installation."""

    def run(self) -> None:
        inplace = self.inplace or self.editable_mode
        package = ROOT / "swsl" if inplace else Path(self.build_lib, "swsl")
        for old in (*(package / place for place in PLACES), *package.glob("_C*.so")):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        shutil.copytree(staged(), package, dirs_exist_ok=True)

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


_stage: list[Path] = []


def staged() -> Path:
    if not _stage:
        _stage.append(compile_runner())
    return _stage[0]


# A wheel's metadata are asked for before the wheel: what they must say about torch is only known once it is built. The source
# distribution promises nothing (its requirements are marked as dynamic).
builds = {"bdist_wheel", "build_ext", "build", "dist_info", "editable_wheel", "develop", "install"} & set(
    sys.argv[1:]
)

# Pillow 13 resizes tall images in another order than its predecessors, which shows in single pixels: one of the two had to be
# the definition.
setup(
    install_requires=[torch_requirement(staged()) if builds else ANY_TORCH, "pillow>=13"],
    ext_modules=[Extension("swsl._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
