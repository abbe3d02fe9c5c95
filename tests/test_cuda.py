"""What only a GPU can show. On a machine with one: python -m pytest -m cuda; SWSL_REQUIRE_CUDA=1 makes a skip a failure."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NAMES, seeded_model
from PIL import Image

import swsl
from swsl.export import TOLERANCES, export_model, golden_input, relative_error
from swsl.prediction import Result
from swsl.runner import Runner, build_info

DTYPES = ("float32", "tf32", "float16", "bfloat16")


def missing() -> str:
    built = build_info()
    if not built["compiled"]:
        return built["reason"]
    if not built["cuda"]:
        return "the compiled runner was built without torch's CUDA libraries"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return (
        "" if built["cuda_kernels"] else "the compiled runner was built without nvcc, so without our kernels"
    )


pytestmark = pytest.mark.cuda
if missing():
    if os.environ.get("SWSL_REQUIRE_CUDA") == "1":
        raise RuntimeError(f"SWSL_REQUIRE_CUDA=1, but {missing()}")
    pytestmark = [pytest.mark.cuda, pytest.mark.skip(missing())]


def tolerance(dtype: str) -> float:
    return TOLERANCES["float16" if dtype == "tf32" else dtype]  # TF32 has float16's mantissa


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def half(frozen50: Path) -> Runner:
    return Runner(frozen50, device="cuda", dtype="float16", batch_size=16)


def reference(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(batch)


def test_pixels_are_pillows(half: Runner, photo: Path, tmp_path: Path) -> None:
    sizes = [(1213, 1546), (1546, 1213), (12000, 300), (300, 12000), (2000, 700), (224, 224), (1, 1), (7, 3)]
    images = [noise(*size, seed) for seed, size in enumerate(sizes)]
    images += [noise(h, w) for h, w in np.random.default_rng(1).integers(1, 900, (40, 2))]
    rows = half.preprocess([photo, *images])
    expected = torch.stack([swsl.preprocess(image) for image in [photo, *images]])
    assert int((rows != expected).sum()) == 0


def test_a_bicubic_rectangle_too(tmp_path: Path) -> None:
    spec = swsl.PreprocessSpec(input_size=(96, 160), crop_pct=0.9, interpolation="bicubic")
    model = swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=2).eval()
    export_model(model, tmp_path / "tiny.pt", spec=spec, labels=["a", "b"])
    runner = Runner(tmp_path / "tiny.pt", device="cuda", dtype="bfloat16")
    images = [noise(h, w) for h, w in ((500, 400), (90, 1000), (1000, 90), (3, 3))]
    expected = torch.stack([swsl.preprocess(image, spec) for image in images])
    assert torch.equal(runner.preprocess(images), expected)


@pytest.fixture(scope="module", params=NAMES)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    model = seeded_model(request.param)
    path = tmp_path_factory.mktemp("variant") / "model.pt"
    export_model(model, path)
    batch = torch.cat([golden_input((1, 3, 224, 224)), torch.randn(4, 3, 224, 224)])
    return path, batch, reference(model, batch)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_eagers(variant, dtype: str) -> None:
    path, batch, expected = variant
    runner = Runner(path, device="cuda", dtype=dtype, batch_size=8)
    assert (runner.info.name, runner.info.dtype) == ("cuda", dtype), runner.info.reason
    for place in (batch, batch.cuda(), batch.cuda().to(memory_format=torch.channels_last)):
        assert relative_error(runner.forward(place).cpu(), expected) <= tolerance(dtype)


def test_it_says_how_it_computes(half: Runner) -> None:
    assert "a CUDA graph for each batch size" in half.info.reason
    for trouble in ("without CUDA graphs", "computed something else", "do not fit"):
        assert trouble not in half.info.reason
    assert "made of decoded images by the GPU" in half.info.reason
    layers = half.profile(torch.randn(16, 3, 224, 224))
    assert sum(layer.multiply_adds > 0 for layer in layers) == 54  # 53 convolutions and the classifier
    assert all(layer.seconds > 0 for layer in layers)


def test_features_and_predictions(half: Runner, model50: swsl.ResNeXt, photo: Path) -> None:
    batch = swsl.preprocess_batch([photo, noise(300, 400)])
    with torch.inference_mode():
        features = model50.forward_head(model50.forward_features(batch), pre_logits=True)
    assert relative_error(half.embed([photo, noise(300, 400)]), features) <= TOLERANCES["float16"]
    logits = half.logits([photo] * 37)
    assert relative_error(logits, reference(model50, batch)[:1].expand(37, -1)) <= TOLERANCES["float16"]
    streamed = list(half.stream([photo, b"no image", photo] * 20, top_k=3))
    assert [bool(result.error) for result in streamed] == [False, True, False] * 20
    assert {p.index for r in streamed if not r.error for p in r.predictions[:1]} == {int(logits[0].argmax())}


def test_batch_sizes_change_and_memory_stays(half: Runner, model50: swsl.ResNeXt) -> None:
    batch = torch.randn(40, 3, 224, 224)
    expected = reference(model50, batch)
    sizes = [1, 40, 3, 16, 17, 2, 7, 31, 1, 5, 12]
    for size in sizes * 2:  # a size is captured when it comes for the second time
        assert relative_error(half.forward(batch[:size]).cpu(), expected[:size]) <= TOLERANCES["float16"]
    assert half.forward(batch[:0]).shape == (0, 1000)
    reserved = torch.cuda.memory_reserved()
    for size in sizes * 3:
        half.forward(batch[:size])
    assert torch.cuda.memory_reserved() == reserved


def test_streams_and_modes_of_the_caller(half: Runner) -> None:
    batch = torch.randn(4, 3, 224, 224, device="cuda")
    alone = half.forward(batch).cpu()
    with torch.inference_mode():
        assert torch.equal(half.forward(batch).cpu(), alone)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert torch.equal(half.forward(batch * 1).cpu(), alone)
    assert torch.equal(half.forward(batch.clone().requires_grad_()).cpu(), alone)


def test_runners_in_threads_and_on_every_gpu(frozen50: Path, model50: swsl.ResNeXt) -> None:
    runners = [
        Runner(frozen50, device=f"cuda:{index}", dtype=dtype, batch_size=8)
        for index in range(torch.cuda.device_count())
        for dtype in ("float16", "bfloat16")
    ]
    batch = torch.randn(8, 3, 224, 224)
    expected = reference(model50, batch)
    images = [noise(300 + i, 400) for i in range(8)]
    pixels = torch.stack([swsl.preprocess(image) for image in images])
    wrong: list[str] = []

    def work(runner: Runner) -> None:
        for size in (8, 1, 5, 8, 3):
            if relative_error(runner.forward(batch[:size]).cpu(), expected[:size]) > tolerance(
                runner.info.dtype
            ):
                wrong.append(f"{runner} at {size}")
            if not torch.equal(runner.preprocess(images[:size]), pixels[:size]):
                wrong.append(f"pixels of {runner}")

    threads = [threading.Thread(target=work, args=(runner,)) for runner in runners * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_one_runner_serves_many_threads(half: Runner) -> None:
    batches = [torch.randn(size, 3, 224, 224) for size in (16, 1, 7, 16)]
    alone = [half.forward(batch).cpu() for batch in batches]
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(10):
                logits = half.forward(batches[index].cuda()).cpu()
                if relative_error(logits, alone[index]) > TOLERANCES["float16"]:
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_work_of_a_stream_overlaps(half: Runner) -> None:
    images = [noise(300, 400, seed) for seed in range(16)] * 8
    list(half.stream(images))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        list(half.stream(images))
    work = sorted(
        (event.time_range.start, event.time_range.end, event.device_resource_id)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    open_until: dict[int, float] = {}
    overlaps = 0
    for start, end, stream in work:
        overlaps += any(start < until for other, until in open_until.items() if other != stream)
        open_until[stream] = max(end, open_until.get(stream, 0))
    assert overlaps > 0


def test_errors_and_auto(frozen50: Path) -> None:
    with pytest.raises(ValueError, match=f"cuda:99.*torch sees {torch.cuda.device_count()} CUDA"):
        Runner(frozen50, device="cuda:99")
    runner = Runner(frozen50, device="auto", dtype="float16")
    assert runner.info.device == "cuda:0"
    assert "device auto: the first CUDA device" in runner.info.reason
    with pytest.raises(ValueError, match="batch: expected a floating-point tensor"):
        runner.forward(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))


def test_a_runner_for_more_images_than_fit(frozen50: Path) -> None:
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2 * 2**30) / total)
    try:
        runner = Runner(frozen50, device="cuda", dtype="float16", batch_size=2048)
        assert "batches are cut into parts of" in runner.info.reason
        assert "without CUDA graphs" not in runner.info.reason
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_a_batch_that_does_not_fit_is_split(frozen50: Path) -> None:
    runner = Runner(frozen50, device="cuda", dtype="float16", batch_size=64)
    batch = torch.randn(64, 3, 896, 896)
    few = runner.forward(batch[:2]).cpu()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2 * 2**30) / total)
    try:
        logits = runner.forward(batch).cpu()
        assert relative_error(logits[:2], few) <= TOLERANCES["float16"]
        assert relative_error(runner.forward(batch).cpu(), logits) <= TOLERANCES["float16"]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
        with pytest.raises(RuntimeError, match="out of memory on cuda:0"):
            runner.forward(torch.randn(1, 3, 4096, 4096))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def nvjpeg(frozen50: Path) -> Runner:
    """As `half`, but inexact. Of a batch of 64 nvJPEG's kernels decode too where a card has no engines for JPEGs."""
    return with_nvjpeg(frozen50)


def with_nvjpeg(path: Path, **options: object) -> Runner:
    try:
        return Runner(path, device="cuda", dtype="float16", batch_size=64, nvjpeg=True, **options)
    except ValueError as error:
        if os.environ.get("SWSL_REQUIRE_CUDA") == "1":
            raise
        pytest.skip(str(error))


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def native_preprocess(runner: Runner, images: list[object]) -> tuple[torch.Tensor, list[str]]:
    """Rows of NaN where there is an error."""
    return runner._runner.preprocess(images)


def steps(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Of 1/255, between pixels."""
    return (rows - others).abs() * torch.tensor(swsl.PreprocessSpec().std).view(3, 1, 1) * 255


def test_nvjpegs_pixels_are_close(half: Runner, nvjpeg: Runner, photo: Path) -> None:
    rgb = Image.open(photo).convert("RGB")
    images: list[bytes] = []
    for size in ((451, 300), (1213, 1546), (700, 2000), (2000, 700), (227, 225), (16, 16), (3, 5)):
        scaled = rgb.resize(size, Image.Resampling.BICUBIC)
        images += [
            jpeg(scaled, quality=90, subsampling=s, **o)
            for s in (0, 1, 2)
            for o in ({}, {"restart_marker_rows": 1})
        ]
    images *= 2  # more than 50
    rough, exact = nvjpeg.preprocess(images), half.preprocess(images)
    moved = steps(rough, exact)
    of_each = moved.flatten(1).mean(1)
    print(f"nvJPEG moves pixels by {moved.mean():.3f} steps of 1/255, by {moved.max():.1f} at most")
    assert (of_each > 0).sum() > len(images) / 2  # or it was not nvJPEG
    assert of_each.max() < 4, of_each
    assert torch.equal(rough[: len(images) // 2], rough[len(images) // 2 :])
    logits = nvjpeg.logits(images), half.logits(images)
    print(f"and logits by a relative error of {relative_error(*logits):.1e}")
    assert relative_error(*logits) < 0.2
    assert (logits[0].argmax(1) == logits[1].argmax(1)).float().mean() > 0.7
    assert "JPEGs decoded by nvJPEG, inexactly, " in nvjpeg.info.reason
    assert "nvJPEG" not in half.info.reason


@pytest.mark.parametrize("exif_orientation", [False, True])
def test_what_is_not_for_nvjpeg_stays_exact(frozen50: Path, photo: Path, exif_orientation: bool) -> None:
    rough = with_nvjpeg(frozen50, exif_orientation=exif_orientation)
    exact = Runner(frozen50, device="cuda", dtype="float16", batch_size=64, exif_orientation=exif_orientation)
    rgb = Image.open(photo).convert("RGB")
    plain, exif, png = jpeg(rgb, quality=90), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    rgb.save(png, "PNG")
    turned = jpeg(rgb, quality=90, exif=exif)
    codes = plain.index(b"\xff\xc4") + 5  # how many of each length
    bad = {
        "truncated": plain[: len(plain) // 2],
        "broken tables": plain[:codes] + b"\xff" * 8 + plain[codes + 8 :],
        "no image": b"no image",
        "nothing": b"",
        "missing": f"{photo}.missing",
    }
    for_the_cpu = {
        "cmyk": jpeg(rgb.convert("CMYK")),
        "grey": jpeg(rgb.convert("L")),
        "progressive": jpeg(rgb, progressive=True),
        "no end": plain[:-2],
        "png": png.getvalue(),
        "array": np.asarray(rgb),
        "turned": turned if exif_orientation else png.getvalue(),
        **bad,
    }
    # nvJPEG itself must turn nothing.
    images = [
        i
        for other in for_the_cpu.values()
        for i in (str(photo), other, plain if exif_orientation else turned)
    ]
    rows, errors = native_preprocess(rough, images)
    right, right_errors = native_preprocess(exact, images)
    assert errors == right_errors
    assert {name for name, error in zip(for_the_cpu, errors[1::3], strict=True) if error} >= set(bad)
    assert torch.equal(rows[1::3].nan_to_num(-99), right[1::3].nan_to_num(-99))
    for decoded, expected in ((rows[::3], right[::3]), (rows[2::3], right[2::3])):
        assert 0 < steps(decoded, expected).mean() < 4
        assert torch.equal(decoded, decoded[:1].expand_as(decoded))


def test_nvjpeg_in_streams(nvjpeg: Runner, photo: Path) -> None:
    rgb = Image.open(photo).convert("RGB")
    sources = [photo, b"no image", jpeg(rgb.rotate(90)), jpeg(rgb, progressive=True), np.asarray(rgb)] * 90
    alone = [None if number == 1 else nvjpeg.logits([sources[number]]) for number in range(5)]
    answers: list[list[Result]] = []

    def work(batch_size: int) -> None:
        answers.append(list(nvjpeg.stream(sources, batch_size=batch_size, output="logits")))

    threads = [threading.Thread(target=work, args=(size,)) for size in (64, 64, 7, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(results) for results in answers] == [len(sources)] * 4
    for results in answers:
        for number, result in enumerate(results):
            expected = alone[number % 5]
            assert bool(result.error) == (expected is None)
            if expected is not None:
                assert relative_error(result.row[None], expected) <= TOLERANCES["float16"]


def test_nvjpeg_needs_no_more_memory_for_the_next_batches(nvjpeg: Runner, photo: Path) -> None:
    images = [jpeg(Image.open(photo).resize((w, 400))) for w in range(300, 364)]
    counts = (64, 1, 64, 33, 2)
    for count in counts * 2:
        nvjpeg.logits(images[:count])
    torch.cuda.synchronize()
    reserved, (free, _) = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()
    for count in counts * 2:
        nvjpeg.logits(images[:count])
    assert torch.cuda.memory_reserved() == reserved
    assert torch.cuda.mem_get_info()[0] >= free - 2**26


def test_nvjpeg_where_it_cannot_be_had(frozen50: Path) -> None:
    with pytest.raises(ValueError, match="nvjpeg: does not go together with dct_scaling"):
        Runner(frozen50, device="cuda", nvjpeg=True, dct_scaling=True)
    if not build_info()["nvjpeg"]:
        with pytest.raises(
            ValueError, match="nvjpeg: swsl was built without it: install PyPI's nvidia-nvjpeg"
        ):
            Runner(frozen50, device="cuda", nvjpeg=True)


def test_a_damaged_jpeg_costs_the_others_nothing(nvjpeg: Runner, half: Runner, photo: Path) -> None:
    """Between its header and its end: libjpeg repairs that with a warning; what nvJPEG makes of it is its own."""
    plain = jpeg(Image.open(photo).convert("RGB"), quality=90)
    images: list[bytes] = []
    for share in range(10, 100, 10):
        at = len(plain) * share // 100
        images += [plain, plain[:at] + bytes(150) + plain[at + 150 :]]
    rows, errors = native_preprocess(nvjpeg, images)
    right, right_errors = native_preprocess(half, images)
    assert errors == right_errors == [""] * len(images)
    assert bool(rows.isfinite().all())
    assert torch.equal(rows[::2], rows[:1].expand_as(rows[::2]))
    assert steps(rows[0], right[0]).mean() < 4
