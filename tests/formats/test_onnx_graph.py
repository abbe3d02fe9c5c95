"""ONNX files: that runtimes compute from them what PyTorch and Pillow do, what they say of themselves, and that bad ones get no name."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, seed_model
from PIL import Image
from torch import Tensor

import swsl
from swsl.cli.main import main
from swsl.formats import onnx_graph, onnx_preprocessing
from swsl.formats.fingerprint import fingerprint
from swsl.formats.golden import TOLERANCES, output_error
from swsl.preprocess import preprocess_batch

LABELS = ["cat", "dög", 'a "quoted" fish']
SPEC = swsl.PreprocessSpec((64, 64))
RUNTIMES = onnx_graph._installed_runtimes()

pytestmark = (
    pytest.mark.slow
)  # PyTorch's exporter takes some seconds, and CI has the packages for its long tests
needs_a_runtime = pytest.mark.skipif(not RUNTIMES, reason="neither onnxruntime nor openvino is installed")
each_runtime = needs_a_runtime
if RUNTIMES:
    each_runtime = pytest.mark.parametrize(
        "load", [pytest.param(load, id=name.rsplit(" ", 1)[0]) for name, load in RUNTIMES.items()]
    )


def small_model() -> swsl.ResNeXt:
    return seed_model(swsl.ResNeXt((1, 2, 1, 1), 4, 4, 3))


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[onnx]'")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "plain.onnx"
    swsl.export_onnx(small_model(), path, spec=SPEC, labels=LABELS, license="MIT", check=False)
    return path


@pytest.fixture(scope="module")
def preprocessing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "preprocessing.onnx"
    swsl.export_onnx(small_model(), path, spec=SPEC, labels=LABELS, with_preprocessing=True, check=False)
    return path


@each_runtime
def test_any_batch_gives_logits_and_embedding(load: Callable, plain: Path) -> None:
    run = load(plain)
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))
        logits, embedding = run(images)
        error = output_error(small_model(), images, logits=logits, features=embedding)
        assert error <= TOLERANCES["float32"]


def test_names_shapes_and_what_the_file_says(plain: Path, preprocessing: Path) -> None:
    import onnx

    model = onnx.load(plain)
    onnx.checker.check_model(model, full_check=True)
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["N", 3, 64, 64], "logits": ["N", 3], "embedding": ["N", 2048]}
    (images,) = onnx.load(preprocessing).graph.input
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [size.dim_param or size.dim_value for size in images.type.tensor_type.shape.dim] == [*"NHW", 3]

    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert said == {
        "swsl.variant": None,
        "swsl.architecture": {"layers": [1, 2, 1, 1], "groups": 4, "width_per_group": 4, "num_classes": 3},
        "swsl.preprocess": json.loads(SPEC.to_json()),
        "swsl.labels": LABELS,
        "swsl.license": "MIT",
        "swsl.weights_sha256": None,
        "swsl.fingerprint": fingerprint(small_model(), SPEC, LABELS),
        "swsl.versions": {"swsl": swsl.__version__, "torch": torch.__version__},
    }


def test_the_file_does_not_tell_where_it_was_made(plain: Path, preprocessing: Path) -> None:
    for path in (plain, preprocessing):
        content = path.read_bytes()
        for place in (Path(swsl.__file__).parent, Path(torch.__file__).parent):
            assert str(place).encode() not in content


def photographs(seed: int) -> Tensor:
    """A photograph in a size of its own, uint8 1×H×W×3."""
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(20, 700, (2,), generator=generator).tolist()
    image = Image.open(ROOT / "swsl" / "cli" / "chelsea.jpg").convert("RGB")
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(1, height, width, 3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preprocessing of the published models without a network."""
    import onnx

    path = tmp_path_factory.mktemp("onnx") / "alone.onnx"
    onnx.save(onnx_preprocessing.preprocessing_graph(swsl.PreprocessSpec(), 10, 18), path)
    return path


@each_runtime
def test_pixels_are_pillows_within_a_step(load: Callable, alone: Path) -> None:
    """Of photographs, and of the sizes where the arithmetic has its limits: one pixel, the crop's size, halves, long strips."""
    run = load(alone)
    generator = torch.Generator().manual_seed(0)
    sizes = (
        (1, 1),
        (1, 3),
        (224, 224),
        (256, 256),
        (512, 512),
        (512, 300),
        (16, 9000),
        (9000, 16),
        (20_000, 50),
    )
    noise = [torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8, generator=generator) for size in sizes]
    found = [
        (images, run(images)[0])
        for images in (*noise, *map(photographs, range(20)), *onnx_preprocessing.sample_images())
    ]
    largest, mean = onnx_preprocessing.difference(found, swsl.PreprocessSpec())
    assert largest <= onnx_preprocessing.MOST_STEPS
    # Only a sum that is half a step to within float32's rounding may fall on the other side.
    assert mean < 0.01


def test_the_page_states_that_step() -> None:
    stated = rf"a pixel is at most {onnx_preprocessing.MOST_STEPS}\s+step of 1/255 from Pillow's"
    assert re.search(stated, (ROOT / "docs" / "formats.md").read_text("utf-8"))


@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.5])
@each_runtime
def test_other_crops_means_and_sizes(load: Callable, crop_pct: float, tmp_path: Path) -> None:
    import onnx

    spec = swsl.PreprocessSpec((65, 65), crop_pct, mean=(0, 1, 0.25), std=(1, 0.5, 1e-2))
    onnx.save(onnx_preprocessing.preprocessing_graph(spec, 10, 20), tmp_path / "alone.onnx")
    run = load(tmp_path / "alone.onnx")
    found = [(images, run(images)[0]) for images in map(photographs, range(8))]
    largest, mean = onnx_preprocessing.difference(found, spec)
    assert largest <= onnx_preprocessing.MOST_STEPS
    assert mean < 0.01


@each_runtime
def test_from_pixels_to_logits(load: Callable, preprocessing: Path) -> None:
    """The error is that of single pixels' rounding, which the network carries on: far less than of another filter."""
    run, model = load(preprocessing), small_model()
    images = photographs(3).repeat(2, 1, 1, 1)
    logits, embedding = run(images)
    exact = preprocess_batch([Image.fromarray(image.numpy()) for image in images], SPEC)
    assert output_error(model, exact, logits=logits, features=embedding) < 1e-3


@needs_a_runtime
def test_both_runtimes_are_tried_and_what_they_found_is_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "mine.onnx"
    assert main(["export", str(trained), "-o", str(path), "--with-preprocessing"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{path}: {trained}, \d+ MB, weights of your own", first)
    pixels = r"pixels of noise \d\.\de-\d\d steps of 1/255 from Pillow's on average, [01] at most"
    for line, runtime in zip(lines, RUNTIMES, strict=True):
        assert re.fullmatch(rf"  {re.escape(runtime)}: relative error \d\.\de-\d\d; {pixels}", line)


@needs_a_runtime
def test_a_file_that_computes_something_else_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wrong.onnx"
    path.write_text("what was there before")

    def export(**options: bool) -> None:
        swsl.export_onnx(small_model(), path, spec=SPEC, labels=LABELS, **options)

    with monkeypatch.context() as patch:
        triangle = "{axis}_triangle = Sub(whole, {axis}_distance)"
        assert triangle in onnx_preprocessing._AXIS
        wider = onnx_preprocessing._AXIS.replace(triangle, triangle.replace("whole", "most"))
        patch.setattr(onnx_preprocessing, "_AXIS", wider)
        with pytest.raises(
            swsl.ModelError, match=r"not written, since the graph's pixels are up to \d+ steps of 1/255"
        ):
            export(with_preprocessing=True)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_graph, "golden_input", lambda shape: torch.zeros(1, 3, 7, 7))
        with pytest.raises(swsl.ModelError, match=r"not written, since \w+.* does not run it: "):
            export()
    outputs = onnx_graph.Answers.forward
    monkeypatch.setattr(
        onnx_graph.Answers,
        "forward",
        lambda self, images: (outputs(self, images)[0] + 0.1, outputs(self, images)[1]),
    )
    with pytest.raises(
        swsl.ModelError, match=r"answers are \d.* from eager PyTorch's, expected at most 1e-05"
    ):
        export()
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_runtime_unchecked_is_a_choice(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "m.onnx"
    assert main(["export", str(trained), "-o", str(path)]) == 1
    assert "needs a runtime: pip install onnxruntime or openvino; or write it unchecked with --no-check" in (
        capsys.readouterr().err
    )
    assert not path.exists()
    assert main(["export", str(trained), "-o", str(path), "--no-check"]) == 0
    assert "not checked: nobody has run it yet" in capsys.readouterr().out
    assert path.stat().st_size > 1e6


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_what_to_install_is_said(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"m\.onnx: writing ONNX needs more: pip install onnx onnxscript"):
        swsl.export_onnx(small_model(), tmp_path / "m.onnx", spec=SPEC, labels=LABELS)


def test_wrong_arguments_write_nothing(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "m.onnx"
    for spec in (swsl.PreprocessSpec((64, 64), interpolation="bicubic"), swsl.PreprocessSpec((64, 48))):
        with pytest.raises(ValueError, match="expected bilinear interpolation and a square input, got bi"):
            swsl.export_onnx(small_model(), path, spec=spec, labels=LABELS, with_preprocessing=True)
    with pytest.raises(ValueError, match="labels: expected 3, one a class, got none"):
        swsl.export_onnx(small_model(), path)
    with pytest.raises(ValueError, match="model: expected a classifier"):
        swsl.export_onnx(swsl.ResNeXt((1, 1, 1, 1), 4, 4, 0), path)
    broken = small_model()
    broken.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(swsl.ModelError, match=r"hold NaN or infinity \(fc\.weight\)"):
        swsl.export_onnx(broken, path, labels=LABELS)
    assert main(["export", str(trained), "-o", str(tmp_path / "no" / "m.onnx")]) == 1
    assert f"there is no folder {tmp_path / 'no'}; make it first" in capsys.readouterr().err
    for option in ("--with-preprocessing", "--no-check"):
        with pytest.raises(SystemExit):
            main(["export", str(trained), "-o", str(tmp_path / "m.pt"), option])
        assert f"{option}: is of ONNX files; expected -o FILE.onnx" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
