"""What all runners have in common: whoever knows one knows the others."""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import seed_model
from PIL import Image

import swsl
from swsl.deploy.eager import EagerRunner
from swsl.deploy.frozen import FrozenRunner
from swsl.deploy.protocol import AnyRunner
from swsl.deploy.runner import Runner, build_info
from swsl.formats.golden import TOLERANCES, relative_error

SPEC = swsl.PreprocessSpec(input_size=(64, 64))
LABELS = [f"class {i}" for i in range(10)]
Make = Callable[..., AnyRunner]

KINDS = (Runner, EagerRunner, FrozenRunner)
# What one kind alone can have, and why.
COMPILED_ONLY = {
    "dtype",  # the file's weights are converted when they are packed
    "cores", "threads",  # PyTorch's are the process's: torch.set_num_threads
    "dct_scaling", "nvjpeg",  # other decoders than Pillow
}  # fmt: skip
EAGER_ONLY = {"spec", "labels"}  # which a frozen module brings
ATTRIBUTES_OF_ONE = {
    Runner: {"metadata", "profile"},  # of its file, and of its engine's layers
    EagerRunner: {"model"},
    FrozenRunner: {"model"},
}


@pytest.fixture(scope="module")
def model() -> swsl.ResNeXt:
    return seed_model(swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=len(LABELS)))


@pytest.fixture(scope="module")
def frozen(model: swsl.ResNeXt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frozen") / "tiny.pt"
    swsl.export_model(model, path, spec=SPEC, labels=LABELS)
    return path


@pytest.fixture(scope="module", params=KINDS)
def make(request: pytest.FixtureRequest, model: swsl.ResNeXt, frozen: Path) -> Make:
    if request.param is EagerRunner:
        return lambda **options: EagerRunner(model, spec=SPEC, labels=LABELS, **options)
    if request.param is Runner and not build_info()["compiled"]:
        if os.environ.get("SWSL_REQUIRE_RUNNER") == "1":
            pytest.fail(build_info()["reason"])
        pytest.skip(build_info()["reason"])
    return lambda **options: request.param(frozen, **options)


@pytest.fixture(scope="module")
def runner(make: Make) -> AnyRunner:
    return make(batch_size=2)


def parameters(function: Any) -> dict[str, tuple[Any, Any]]:
    """The kind and the default of each."""
    return {p.name: (p.kind, p.default) for p in inspect.signature(function).parameters.values()}


def public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


@pytest.mark.parametrize("kind", KINDS)
def test_options_and_their_defaults_are_the_same(kind: type[AnyRunner]) -> None:
    shared = {n: p for n, p in parameters(Runner.__init__).items() if n not in COMPILED_ONLY}
    found = {n: p for n, p in parameters(kind.__init__).items() if n not in COMPILED_ONLY | EAGER_ONLY}
    assert found == shared
    assert list(found)[:2] == ["self", "model"]


@pytest.mark.parametrize("kind", KINDS)
def test_methods_and_their_signatures_are_the_same(kind: type[AnyRunner]) -> None:
    for name in public(AnyRunner):
        ours, theirs = getattr(kind, name), getattr(AnyRunner, name)
        assert type(ours) is type(theirs), name
        if callable(ours):
            assert parameters(ours) == parameters(theirs), name
        assert inspect.getdoc(ours), name
    assert {
        "classify",
        "run",
        "stream",
        "embed",
        "logits",
        "preprocess",
        "forward",
        "submit",
        "close",
    } <= public(kind)


def test_attributes_are_the_same(runner: AnyRunner, frozen: Path) -> None:
    declared = public(AnyRunner) | {name for name in AnyRunner.__annotations__ if not name.startswith("_")}
    assert public(runner) - ATTRIBUTES_OF_ONE[type(runner)] == declared
    assert (runner.device, runner.batch_size) == (torch.device("cpu"), 2)
    assert (runner.spec, runner.labels) == (SPEC, tuple(LABELS))
    assert (runner.exif_orientation, runner.max_pixels) == (False, 89_478_485)
    assert (runner.info.device, runner.info.dtype, runner.info.batch_size) == ("cpu", "float32", 2)
    assert runner.info.threads >= 1
    assert runner.info.name
    assert runner.info.reason
    assert not runner.info.golden_error > runner.info.golden_tolerance
    assert runner.fingerprint == FrozenRunner(frozen).fingerprint


def test_the_batch_size_is_the_devices(make: Make) -> None:
    assert make().batch_size == make(batch_size=0).info.batch_size == 16


def test_all_outputs_of_one_pass(runner: AnyRunner, photo: Path) -> None:
    images: list[Any] = [photo, "nowhere.jpg", Image.open(photo).rotate(90), photo.read_bytes()]
    good = [0, 2, 3]
    sound = [images[place] for place in good]
    embeddings, logits = runner.embed(sound), runner.logits(sound)
    expected = runner.classify(sound, 3)
    for outputs in (
        "embedding",
        ["logits"],
        ("predictions", "embedding"),
        ("logits", "embedding", "predictions"),
    ):
        with pytest.raises(swsl.ImageError, match=r"nowhere\.jpg"):
            runner.run(images, outputs)
        results = runner.run(images, outputs, top_k=3, errors="return")
        assert [result.source for result in results] == images
        assert [result.error is None for result in results] == [place in good for place in range(4)]
        assert (results[1].predictions, results[1].embedding, results[1].logits) == ([], None, None)
        for place, result in enumerate(results[place] for place in good):
            for name, rows in (("embedding", embeddings), ("logits", logits)):
                row = getattr(result, name)
                assert (row is not None) == (name in outputs)
                if row is not None:
                    assert relative_error(row, rows[place]) <= TOLERANCES["float32"]
                    assert (row.dtype, row.device.type) == (torch.float32, "cpu")
                    assert row.untyped_storage().nbytes() == 4 * row.numel()  # keeps no batch alive
            answer = [p.index for p in expected[place]] if "predictions" in outputs else []
            assert [p.index for p in result.predictions] == answer
    assert runner.run([], "logits") == []


def test_errors_are_raised_or_returned(runner: AnyRunner, photo: Path) -> None:
    for kind, image in ((swsl.ImageError, b"nothing"), (TypeError, 3)):
        first, bad, last = runner.classify([photo, image, photo], errors="return")
        assert isinstance(bad, kind)
        assert first[0].index == last[0].index
        with pytest.raises(kind):
            runner.classify([photo, image])
    with pytest.raises(ValueError, match="errors: expected 'raise' or 'return', got 'ignore'"):
        runner.classify([photo], errors="ignore")


def test_exif_orientation(make: Make, photo: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.open(photo).save(file, "JPEG", exif=exif)
    for turned in (False, True):
        expected = swsl.preprocess(file.getvalue(), SPEC, exif_orientation=turned)
        with make(exif_orientation=turned) as runner:
            assert torch.equal(runner.preprocess([file.getvalue()])[0], expected)
            assert torch.equal(runner.logits([file.getvalue()]), runner.forward(expected[None]))
            (result,) = runner.run([file.getvalue()], "logits")
            assert relative_error(result.logits, runner.forward(expected[None])[0]) <= TOLERANCES["float32"]


def test_max_pixels(make: Make) -> None:
    image = torch.zeros(20, 30, 3, dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "PNG")
    runner = make(max_pixels=599)
    (result,) = runner.run([file.getvalue()], errors="return")
    assert "at most 599" in str(result.error)
    assert make(max_pixels=600).run([file.getvalue()])[0].error is None


def test_batches_of_any_float_type_and_results_for_autograd(runner: AnyRunner) -> None:
    batch = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits = runner.forward(batch.float())
    for dtype in (torch.float64, torch.bfloat16):
        assert relative_error(runner.forward(batch.to(dtype)), logits) <= TOLERANCES["float32"]
    weight = torch.ones(10, 1, requires_grad=True)
    (logits @ weight).sum().backward()
    torch.testing.assert_close(weight.grad[:, 0], logits.sum(0))
    for wrong in (batch[0], batch.int(), batch[:, :2], batch.to_sparse()):
        with pytest.raises(
            ValueError, match="batch: expected a floating-point tensor N×3×height×width, got "
        ):
            runner.forward(wrong)
    with pytest.raises(TypeError, match="batch: expected a tensor, got list"):
        runner.forward([1])


def test_faulty_options_are_named(runner: AnyRunner, make: Make) -> None:
    for options in (
        {"outputs": "pixels"},
        {"outputs": []},
        {"top_k": 0},
        {"batch_size": -1},
        {"workers": -1},
    ):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}: expected .*, got "):
            runner.stream([], **options)
    with pytest.raises(TypeError, match="^outputs: expected a name or several, got int 3"):
        runner.stream([], outputs=3)
    for options in ({"batch_size": -1}, {"max_pixels": 0}, {"device": "tpu"}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}: expected .*, got "):
            make(**options)
    for options in ({"batch_size": 2.5}, {"device": torch.device("cpu")}, {"exif_orientation": 1}):
        with pytest.raises(TypeError, match=f"^{next(iter(options))}: expected a?.*, got "):
            make(**options)


def test_options_that_there_are_not_are_named(runner: AnyRunner, make: Make, photo: Path) -> None:
    with pytest.raises(
        TypeError, match=rf"^batchsize: {type(runner).__name__} has no such option; did you mean batch_size\?"
    ):
        make(batchsize=3)
    with pytest.raises(TypeError, match="^colour: .* has no such option; expected one of .*exif_orientation"):
        make(colour="grey")
    for call in (runner.run, runner.classify, runner.stream):
        with pytest.raises(
            TypeError, match=rf"^topk: {call.__name__} has no such option; did you mean top_k\?"
        ):
            call([photo], topk=3)


def test_what_is_no_model_is_refused_at_once(frozen: Path, model: swsl.ResNeXt) -> None:
    for wrong, message in (
        (
            timm.create_model("resnext50_32x4d"),
            r"got ResNet .*load_state_dict\(model\.state_dict\(\)\), which takes timm's",
        ),
        (str(frozen), r"got str .*runs in swsl\.Runner or swsl\.deploy\.frozen\.FrozenRunner, and weights"),
        (frozen, "got PosixPath .*a frozen module runs in"),
        (swsl.create_model, "got function "),
    ):
        with pytest.raises(TypeError, match=rf"^model: expected a swsl\.ResNeXt, .*{message}"):
            EagerRunner(wrong)
    assert EagerRunner(torch.compile(model), spec=SPEC).info.name == "eager"
    for kind in (Runner, FrozenRunner):
        for wrong in (model, b"model.pt", 3):
            with pytest.raises(
                TypeError,
                match=r"^model: expected the path of a file that .* swsl\.EagerRunner\(model\) runs",
            ):
                kind(wrong)


def test_closing(make: Make, photo: Path) -> None:
    with make(batch_size=1) as runner:
        stream = runner.stream([photo] * 4)
        next(stream)
        waiting = runner.stream([photo])
    assert len([*stream, *waiting]) == 4  # what has begun goes on
    for call in (
        lambda: runner.classify([photo]), lambda: runner.run([photo]), lambda: runner.stream([photo]),
        lambda: runner.embed([]), lambda: runner.logits([]), lambda: runner.preprocess([photo]),
        lambda: runner.forward(torch.zeros(1, 3, 64, 64)), lambda: runner.submit(photo), runner.__enter__,
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=f"^this {type(runner).__name__} is closed; make another$"):
            call()
    runner.close()
    assert "cpu" in repr(runner)
    with pytest.raises(LookupError), make() as runner:
        raise LookupError
    with pytest.raises(RuntimeError, match="closed"):
        runner.classify([photo])
