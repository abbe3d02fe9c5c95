"""The compiled extension and its LibTorch part: what they are linked to, and what is said where they are missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import run, seed_model
from PIL import Image

import swsl
from swsl.deploy import native
from swsl.deploy.export import export_model
from swsl.deploy.runner import Runner, build_info

if not build_info()["compiled"]:
    if os.environ.get("SWSL_REQUIRE_RUNNER") == "1":
        raise ImportError(build_info()["reason"])
    pytest.skip(build_info()["reason"], allow_module_level=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frozen") / "tiny.pt"
    model = seed_model(swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=2))
    export_model(model, path, spec=swsl.PreprocessSpec(input_size=(64, 64)), labels=["a", "b"])
    return path


def without_extension(monkeypatch: pytest.MonkeyPatch, compiled: Path) -> None:
    """As if what setup.py builds were this folder."""
    monkeypatch.setitem(sys.modules, "swsl._C", None)
    monkeypatch.delattr(swsl, "_C", raising=False)
    monkeypatch.setattr(native, "COMPILED", compiled)


def test_the_reason_of_a_failed_build_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_extension(monkeypatch, tmp_path)
    (tmp_path / "_C.pyi").touch()
    monkeypatch.setattr(sys, "path", [])  # as if none were installed
    with pytest.raises(ImportError, match=r"has not been installed \(pip install \.\)"):
        Runner("model.pt")
    (tmp_path / "_build_failure.txt").write_text("no compiler anywhere")
    with pytest.raises(ImportError, match="could not be compiled on installation:\nno compiler anywhere"):
        Runner("model.pt")
    assert "no compiler anywhere" in build_info()["reason"]


def test_sources_that_stand_before_the_installed_package_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "checkout" / "swsl").mkdir(parents=True)
    (tmp_path / "site" / "swsl").mkdir(parents=True)
    (tmp_path / "site" / "swsl" / "__init__.py").touch()
    without_extension(monkeypatch, tmp_path / "checkout" / "swsl")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "checkout"), str(tmp_path / "site")])
    with pytest.raises(
        ImportError, match=f"took the sources in {tmp_path}/checkout .* start it in another folder"
    ):
        Runner("model.pt")


DECODERS_MISSING = """
import json, sys
from pathlib import Path
import swsl
from swsl.deploy import native

*sources, path, folder = sys.argv[1:]
swsl.__path__.insert(0, folder)
native.COMPILED = Path(folder)
runner = swsl.Runner(path)
built = native.build_info()
print(json.dumps([built["jpeg"], built["png"], runner.logits(sources).tolist()]))
"""


@pytest.mark.parametrize("library", [b"libjpeg.so.", b"libpng16.so."])
def test_pillow_decodes_where_a_decoder_cannot_be_loaded(
    library: bytes, path: Path, photo: Path, tmp_path: Path
) -> None:
    compiled = Path(
        shutil.copytree(native.COMPILED, tmp_path / "compiled", ignore=shutil.ignore_patterns("*.py"))
    )
    content = (compiled / "lib" / "libswsl.so").read_bytes()
    if library not in content:
        pytest.skip("built without it")
    (compiled / "lib" / "libswsl.so").write_bytes(content.replace(library, library.replace(b"so", b"no")))
    Image.open(photo).save(tmp_path / "photo.png")
    sources = [photo, tmp_path / "photo.png"]
    printed = run(sys.executable, "-c", DECODERS_MISSING, *sources, path, compiled).stdout
    assert json.loads(printed) == ["Pillow", "Pillow", Runner(path).logits(sources).tolist()]


WITHOUT_LIBTORCH = """
import sys, torch
from pathlib import Path
from swsl.deploy import native
from swsl.deploy.runner import Runner

path, folder = sys.argv[1:]
native.COMPILED = Path(folder)
torch.version.cuda = None
batch = torch.zeros(1, 3, 64, 64)
for dtype in ("float32", "bfloat16", "auto"):
    assert Runner(path, dtype=dtype).forward(batch).isfinite().all()
assert "device auto: no CUDA device is here" in Runner(path, device="auto").info.reason
for options in ({"dtype": "float16"}, {"device": "cuda"}, {"device": "cuda:1"}):
    try:
        Runner(path, **options)
    except ImportError as error:
        print(error)
assert "swsl._libtorch" not in sys.modules
"""


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (
            {"left_out": "the LibTorch part: no luck"},
            "swsl was built without the LibTorch part: no luck",
        ),
        ({"torch": "2.8.1", "cuda": False}, "was built with torch 2.8.1, but this is torch"),
        (
            {"torch": torch.__version__.split("+")[0], "cuda": True},
            "a CPU build without the libraries it is linked to",
        ),
    ],
)
def test_without_a_libtorch_part_for_this_torch_the_core_runs(
    record: dict[str, object], why: str, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "_libtorch.json").write_text(json.dumps(record))
    printed = run(sys.executable, "-c", WITHOUT_LIBTORCH, path, tmp_path).stdout.splitlines()
    for line, wish in zip(
        printed, ("float32 and bfloat16 only", 'device: "cuda" needs', 'device: "cuda:1" needs'), strict=True
    ):
        assert wish in line
        assert why in line
        assert line.endswith("pip install --no-build-isolation --force-reinstall --no-deps .")


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_the_core_is_linked_to_no_torch_and_no_openmp() -> None:
    (binding,) = native.COMPILED.glob("_C*.so")
    for library in (binding, native.COMPILED / "lib" / "libswsl.so"):
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", library).stdout)
        assert any(name.startswith("libc.so") for name in needed)
        assert not [name for name in needed if re.search("torch|c10|omp|python", name)]


def test_the_extension_itself_needs_no_torch() -> None:
    (binding,) = native.COMPILED.glob("_C*.so")
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('_C', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(memoryview(module.golden_input([1, 3, 2, 2])).shape, 'torch' in sys.modules)\n"
    )
    assert run(sys.executable, "-c", code, binding).stdout == "(1, 3, 2, 2) False\n"
