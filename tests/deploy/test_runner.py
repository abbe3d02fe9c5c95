"""The compiled runner as Python sees it: the same pixels, logits and errors as the eager path."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest
import torch
from conftest import DTYPES, NAMES, seed_model, seeded_model
from PIL import Image

import swsl
from swsl.deploy import native
from swsl.deploy import runner as runner_module
from swsl.deploy.eager import EagerRunner
from swsl.deploy.export import ModelError, export_model
from swsl.deploy.runner import Prediction, Runner, build_info, decode_image
from swsl.formats.golden import TOLERANCES, golden_input, output_error

if not build_info()["compiled"]:
    if os.environ.get("SWSL_REQUIRE_RUNNER") == "1":
        raise ImportError(build_info()["reason"])
    pytest.skip(build_info()["reason"], allow_module_level=True)

SPEC = swsl.PreprocessSpec(input_size=(64, 64))
LABELS = [f"class {i}" for i in range(9)] + ["a, é"]


@pytest.fixture(scope="module")
def model() -> swsl.ResNeXt:
    return seed_model(swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=len(LABELS)))


@pytest.fixture(scope="module")
def path(model: swsl.ResNeXt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frozen") / "tiny.pt"
    export_model(model, path, spec=SPEC, labels=LABELS)
    return path


@pytest.fixture(scope="module")
def runner(path: Path) -> Runner:
    return Runner(path, batch_size=4)


@pytest.fixture(scope="module")
def eager(model: swsl.ResNeXt) -> EagerRunner:
    return EagerRunner(model, spec=SPEC, labels=LABELS, device="cpu")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_every_kind_of_image_has_the_references_pixels(runner: Runner, photo: Path) -> None:
    rgb = Image.open(photo).convert("RGB")
    tensor = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3)
    images = [
        photo,
        str(photo),
        photo.read_bytes(),
        bytearray(photo.read_bytes()),
        memoryview(photo.read_bytes()),
        Image.open(photo),
        rgb,
        tensor,
        tensor.numpy(),
        tensor.permute(1, 0, 2).contiguous().permute(1, 0, 2),  # columns first in memory
        tensor.numpy()[::-1][::-1],
        torch.cat([tensor, tensor], dim=1)[:, : rgb.width],  # rows with a gap between them
        encoded(rgb, "PNG"),
        encoded(rgb, "BMP"),  # of Pillow's formats
        encoded(rgb, "TIFF"),
        encoded(rgb, "WEBP", lossless=True),
    ]
    reference = swsl.preprocess(photo, SPEC)
    for image, row in zip(images, runner.preprocess(images), strict=True):
        assert torch.equal(row, reference), type(image)
    flipped = tensor.numpy()[:, ::-1]
    assert torch.equal(runner.preprocess([flipped])[0], swsl.preprocess(flipped.copy(), SPEC))
    gif = encoded(rgb, "GIF")
    assert torch.equal(runner.preprocess([gif])[0], swsl.preprocess(gif, SPEC))


def test_dct_scaling_on_request(path: Path, photo: Path) -> None:
    small = encoded(Image.open(photo).resize((180, 140)), "JPEG")
    large = encoded(Image.open(photo).resize((700, 600), Image.Resampling.BICUBIC), "JPEG", quality=95)
    exact, scaled = Runner(path), Runner(path, dct_scaling=True)
    for image in (small, large):
        assert torch.equal(exact.preprocess([image])[0], swsl.preprocess(image, SPEC))
    assert torch.equal(scaled.preprocess([small]), exact.preprocess([small]))
    steps = (scaled.preprocess([large]) - exact.preprocess([large])).abs() * 0.23 * 255
    assert 0 < steps.mean() < 1  # of 1/255


def test_exif_orientation_on_request(path: Path, photo: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.open(photo), "JPEG", exif=exif)
    webp = encoded(Image.open(photo), "WEBP", exif=exif, lossless=True)
    for flag in (False, True):
        runner = Runner(path, exif_orientation=flag)
        for image in (turned, webp):
            expected = swsl.preprocess(image, SPEC, exif_orientation=flag)
            assert torch.equal(runner.preprocess([image])[0], expected)


def test_logits_features_and_predictions_are_those_of_eager(
    runner: Runner, eager: EagerRunner, photo: Path
) -> None:
    images = [photo, Image.open(photo).rotate(90), *[photo] * 8]
    batch = eager.preprocess(images)
    for logits in (runner.logits(images), runner.forward(batch), eager.logits(images)):
        error = output_error(eager.model, batch, logits=logits, features=runner.embed(images))
        assert error <= TOLERANCES["float32"]
    for ours, theirs in zip(runner.classify(images, top_k=3), eager.classify(images, top_k=3), strict=True):
        assert [(p.label, p.index) for p in ours] == [(p.label, p.index) for p in theirs]
        assert [p.probability for p in ours] == pytest.approx([p.probability for p in theirs], rel=1e-4)
        assert isinstance(ours[0], Prediction)


@pytest.mark.parametrize(
    "name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
)
def test_eager_frozen_and_compiled_agree(name: str, tmp_path: Path, photo: Path) -> None:
    model = seeded_model(name)
    path = tmp_path / "model.pt"
    export_model(model, path)
    batch = torch.cat([swsl.preprocess(photo)[None], golden_input((1, 3, 224, 224))])
    with torch.inference_mode():
        best = model(batch[:1])[0].topk(5).indices.tolist()
        frozen = torch.jit.load(str(path))
        assert (
            output_error(model, batch, logits=frozen(batch), features=frozen.embed(batch))
            <= TOLERANCES["float32"]
        )
    del frozen
    runner = Runner(path)
    assert output_error(model, batch, logits=runner.forward(batch)) <= TOLERANCES["float32"]
    both = {"logits": runner.logits([photo]), "features": runner.embed([photo])}
    assert output_error(model, batch[:1], **both) <= TOLERANCES["float32"]
    assert [p.index for p in runner.classify([photo])[0]] == best
    del runner
    for dtype in DTYPES[1:]:
        runner = Runner(path, dtype=dtype)
        error = output_error(model, batch, logits=runner.forward(batch))
        assert max(error, runner.info.golden_error) <= TOLERANCES[dtype]


def test_one_bad_image_is_one_error(runner: Runner, photo: Path, tmp_path: Path) -> None:
    cut = photo.read_bytes()[:5000]
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    bad = {
        1: (tmp_path / "nothing.png", "nothing.png: "),
        2: (cut, "truncated"),
        4: (text, "text.jpg: "),
        6: (torch.zeros(4, 4, dtype=torch.uint8), "expected uint8 height × width × 3, got uint8 (4, 4)"),
        7: (torch.zeros(0, 4, 3, dtype=torch.uint8), "(0, 4, 3)"),
        8: (tmp_path, tmp_path.name),
        9: (b"", ""),
    }
    images = [bad[i][0] if i in bad else photo for i in range(11)]
    answers = runner.classify(images, errors="return")
    good = runner.classify([photo])[0]
    for i, answer in enumerate(answers):
        if i in bad:
            assert isinstance(answer, swsl.ImageError)
            assert bad[i][1] in str(answer)
        else:
            assert [p.index for p in answer] == [p.index for p in good]
    streamed = list(runner.stream(iter(images)))
    assert [str(r.error) if r.error else r.predictions for r in streamed] == [
        str(a) if isinstance(a, Exception) else a for a in answers
    ]
    assert [r.source for r in streamed] == images
    for method in (runner.classify, runner.logits, runner.embed, runner.preprocess):
        with pytest.raises(swsl.ImageError, match=r"nothing\.png"):
            method(images)


def test_no_images(runner: Runner) -> None:
    assert runner.classify([]) == []
    assert list(runner.stream([])) == []
    assert runner.logits([]).shape == (0, len(LABELS))
    assert runner.embed([]).shape == (0, 2048)
    assert runner.preprocess([]).shape == (0, 3, 64, 64)


def test_faulty_arguments_are_named(runner: Runner, path: Path, photo: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"expected a list of images, got one str; write \[image\]"):
        runner.classify(str(photo))
    with pytest.raises(TypeError, match="got int"):
        runner.preprocess([3])
    with pytest.raises(ValueError, match="top_k: expected 1 or more, got 0"):
        runner.classify([photo], top_k=0)
    with pytest.raises(ValueError, match="errors: expected 'raise' or 'return', got 'ignore'"):
        runner.classify([photo], errors="ignore")
    with pytest.raises(ValueError, match="batch: expected a floating-point tensor N×3×height×width"):
        runner.forward(torch.zeros(3, 64, 64))
    with pytest.raises(TypeError, match="top_k: expected a whole number, got str '5'$"):
        runner.classify([photo], top_k="5")
    with pytest.raises(
        TypeError, match="model: expected the path of a file that `swsl export` wrote, got int 3"
    ):
        Runner(3)
    with pytest.raises(TypeError, match="batch: expected a tensor, got list"):
        runner.forward([1])
    for options in (
        {"device": torch.device("cpu")},
        {"dtype": torch.float32},
        {"threads": "2"},
        {"batch_size": 2.5},
    ):
        name, value = next(iter(options.items()))
        with pytest.raises(TypeError, match=f"^{name}: expected a .*, got {type(value).__name__} "):
            Runner(path, **options)
    for options in ({"device": "tpu"}, {"dtype": "int8"}, {"threads": -1}, {"batch_size": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Runner(path, **options)
    with pytest.raises(ValueError, match='dtype: .*"tf32", which only CUDA computes'):
        Runner(path, dtype="tf32")
    with pytest.raises(TypeError, match="^nvjpeg: expected True or False, got int 1$"):
        Runner(path, nvjpeg=1)
    for options, why in (
        ({"device": "cpu"}, 'decodes on a CUDA device, got device "cpu"'),
        ({"dct_scaling": True}, "does not go together with dct_scaling"),
    ):
        with pytest.raises(ValueError, match=f"^nvjpeg: {why}.*leave "):
            Runner(path, nvjpeg=True, **options)
    with pytest.raises(ModelError, match=r"nothing\.pt: no such file"):
        Runner(tmp_path / "nothing.pt")
    with pytest.raises(ModelError, match="no frozen module, or damaged"):
        Runner(photo)


def test_it_says_what_it_is(runner: Runner, path: Path) -> None:
    assert runner.labels == tuple(LABELS)
    assert runner.spec == SPEC
    assert runner.batch_size == 4
    assert runner.info.golden_error <= runner.info.golden_tolerance == TOLERANCES["float32"]
    assert repr(runner).startswith("compiled runner (")
    assert repr(runner).endswith(") on cpu")
    assert Runner(path, dtype="bfloat16", threads=1).info[2:4] == ("bfloat16", 1)
    built = build_info()
    assert built["torch"] in (torch.__version__.split("+")[0], "")
    assert built["left_out"] or built["torch"]
    assert built["swsl"] == swsl.__version__
    assert built["jpeg"] in ("libjpeg", "Pillow")
    assert built["cuda"] >= built["cuda_kernels"] >= built["nvjpeg"]
    assert os.path.isfile(os.path.join(runner_module.cmake_prefix_path, "swsl", "swslConfig.cmake"))


@pytest.mark.skipif(not build_info()["torch"], reason=str(build_info()["left_out"]))
def test_a_gpu_that_is_not_there(path: Path) -> None:
    count = torch.cuda.device_count() if build_info()["cuda"] else 0
    with pytest.raises(
        ValueError, match=f'device: "cuda:{count}" is not here: torch sees {count} CUDA devices'
    ):
        Runner(path, device=f"cuda:{count}")
    if count == 0:
        assert "device auto: no CUDA device is here" in Runner(path, device="auto").info.reason
        with pytest.raises(ValueError, match='nvjpeg: .*"auto", and no CUDA device is here'):
            Runner(path, device="auto", nvjpeg=True)


def test_cuda_libraries_that_are_linked_are_loaded() -> None:
    # A linker that is told nothing else drops libraries of which no symbol is needed; no CUDA device would be found then.
    for library in (native.COMPILED / "lib").glob("libswsl_torch.so"):
        assert (b"libtorch_cuda.so" in library.read_bytes()) == build_info()["cuda"]


def test_decode_image_equals_pillow(photo: Path) -> None:
    rgb = Image.open(photo).convert("RGB")
    for source in (photo, photo.read_bytes(), rgb, encoded(rgb, "PNG"), encoded(rgb, "BMP")):
        pixels = decode_image(source)
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (rgb.height, rgb.width, 3))
        assert bytes(pixels.numpy().tobytes()) == rgb.tobytes()
    with pytest.raises(swsl.ImageError, match="truncated"):
        decode_image(photo.read_bytes()[:5000])


def test_without_libjpeg_and_libpng_pillow_decodes(runner: Runner, photo: Path, monkeypatch) -> None:
    class Without:
        @staticmethod
        def build_info() -> dict[str, bool]:
            return {"jpeg": False, "png": False}

    monkeypatch.setattr(runner, "_module", Without)
    assert torch.equal(runner.preprocess([photo])[0], swsl.preprocess(photo, SPEC))
    with pytest.raises(swsl.ImageError):
        runner.preprocess([photo.read_bytes()[:5000]])


def test_closing_ends_its_threads(path: Path) -> None:
    before = len(os.listdir("/proc/self/task"))
    with Runner(path, cores=3):
        assert len(os.listdir("/proc/self/task")) > before
    assert len(os.listdir("/proc/self/task")) == before


def test_eight_threads_get_what_one_gets(runner: Runner, photo: Path) -> None:
    alone = runner.logits([photo] * 6)
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(runner.logits([photo] * 6))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(torch.equal(result, alone) for result in results)


def test_other_python_threads_run_meanwhile(runner: Runner) -> None:
    ticks, done = 0, threading.Event()

    def count() -> None:
        nonlocal ticks
        while not done.wait(0.001):
            ticks += 1

    thread = threading.Thread(target=count)
    thread.start()
    batch = torch.zeros(400, 3, 64, 64)
    before = ticks
    runner.forward(batch)
    after = ticks
    done.set()
    thread.join()
    assert after - before >= 10  # with the GIL held it could not be more than 1 or 2


def test_batches_of_every_float_type_and_layout(runner: Runner) -> None:
    batch = golden_input((6, 3, 64, 64))
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        own = batch.to(dtype)
        expected = runner.forward(own.float())
        for same in (
            own,
            own.to(memory_format=torch.channels_last),
            own.transpose(2, 3).contiguous().transpose(2, 3),
            own.repeat_interleave(2, dim=0)[::2],
            own.clone().requires_grad_(),
            torch._neg_view(-own),
        ):
            logits = runner.forward(same)
            assert torch.equal(logits, expected)
            assert (logits.dtype, logits.requires_grad) == (torch.float32, False)
    one = batch[:1]
    assert torch.equal(runner.forward(one.expand(3, -1, -1, -1)), runner.forward(one).expand(3, -1))
    assert runner.forward(batch[:0]).shape == (0, 10)
    for wrong in (batch.int(), batch[:, :2], batch.to_sparse()):
        with pytest.raises(
            ValueError, match="batch: expected a floating-point tensor N×3×height×width, got "
        ):
            runner.forward(wrong)
