"""Packages as pip builds them: with a compiler, without one, and used by a C++ project. Needs torch, CMake and ninja installed."""

from __future__ import annotations

import os
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


def run(*command: object, cwd: Path, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(source: Path, folder: Path, **environment: str) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, source, cwd=folder, **environment)  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


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
    ignored = shutil.ignore_patterns("build", "dist", "*.so", "*.egg-info", ".git", "include", "lib", "share")
    checkout.mkdir()
    for name in ("swsl", "cpp", "tests"):
        kept = None if name == "cpp" else ignored
        shutil.copytree(ROOT / name, checkout / name, ignore=kept)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, checkout)
    run(sys.executable, "setup.py", "-q", "sdist", "-d", folder, cwd=checkout)
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def test_a_wheel_runs_and_serves_c_plus_plus_projects(source: Path, tmp_path: Path, photo: Path) -> None:
    wheel = build_wheel(source, tmp_path, SWSL_BUILD="1")
    assert requirements(wheel) == [f"Requires-Dist: torch=={torch.__version__.split('+')[0]}"]
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel, cwd=tmp_path)

    model = tmp_path / "model.pt"
    labels = [f"class {i}" for i in range(10)]
    network = seed_model(swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=10))
    swsl.export_model(network, model, spec=swsl.PreprocessSpec(input_size=(64, 64)), labels=labels)
    code = (
        "import sys, swsl\n"
        "for p in swsl.Runner(sys.argv[1]).classify([sys.argv[2]])[0]: print(f'{p.label} {p.probability:.6g}')\n"
        "print(swsl.cmake_prefix_path)\n"
    )
    *python, prefix = run(
        sys.executable, "-c", code, model, photo, cwd=tmp_path, PYTHONPATH=str(site)
    ).splitlines()
    assert Path(prefix).is_relative_to(site)

    build = tmp_path / "build"
    run("cmake", "-S", ROOT / "cpp" / "tests" / "outside", "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DPython_EXECUTABLE={sys.executable}", cwd=tmp_path)  # fmt: skip
    run("cmake", "--build", build, "--target", "app", cwd=tmp_path)
    from_cpp = run(build / "app", model, photo, cwd=tmp_path).splitlines()
    assert [line.rsplit(" ", 1)[0] for line in from_cpp] == [line.rsplit(" ", 1)[0] for line in python]
    for ours, theirs in zip(from_cpp, python, strict=True):
        assert float(ours.split()[-1]) == pytest.approx(float(theirs.split()[-1]), rel=1e-4)


def test_without_a_compiler_the_package_installs_and_says_why(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    wheel = build_wheel(copy, tmp_path, CXX=str(tmp_path / "no-compiler"), SWSL_BUILD="")
    assert requirements(wheel) == ["Requires-Dist: torch>=2.8"]
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    code = (
        "import swsl\n"
        "swsl.create_model('swsl_resnext50_32x4d', pretrained=False)\n"
        "try: swsl.Runner('model.pt')\n"
        "except ImportError as error: print(error)\n"
    )
    message = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    assert "could not be compiled on installation" in message
    assert "no-compiler" in message
