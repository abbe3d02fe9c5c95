"""What only a GPU can show. On a machine with one: python -m pytest -m cuda; SWSL_REQUIRE_CUDA=1 makes a skip a failure."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NAMES, cuda_marks, seeded_model

import swsl
from swsl.deploy.export import export_model
from swsl.deploy.runner import Runner
from swsl.formats.golden import TOLERANCES, golden_input, output_error, relative_error

DTYPES = ("float32", "tf32", "float16", "bfloat16")


pytestmark = cuda_marks()


def tolerance(dtype: str) -> float:
    return TOLERANCES["float16" if dtype == "tf32" else dtype]  # TF32 has float16's mantissa


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


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
    return path, batch, model


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_eagers(variant, dtype: str) -> None:
    path, batch, model = variant
    runner = Runner(path, device="cuda", dtype=dtype, batch_size=8)
    assert (runner.info.name, runner.info.dtype) == ("cuda", dtype), runner.info.reason
    for place in (batch, batch.cuda(), batch.cuda().to(memory_format=torch.channels_last)):
        assert output_error(model, batch, logits=runner.forward(place).cpu()) <= tolerance(dtype)


def test_it_says_how_it_computes(half: Runner) -> None:
    assert "a CUDA graph for each batch size" in half.info.reason
    for trouble in ("without CUDA graphs", "computed something else", "do not fit"):
        assert trouble not in half.info.reason
    assert "made of decoded images by the GPU" in half.info.reason
    layers = half.profile(torch.randn(16, 3, 224, 224))
    assert sum(layer.multiply_adds > 0 for layer in layers) == 54  # 53 convolutions and the classifier
    assert all(layer.seconds > 0 for layer in layers)
    for layer in layers:
        ways = {way.kernel: way.seconds for way in layer.ways if not way.trouble}
        assert bool(ways) == (layer.multiply_adds > 0)
        assert not ways or ways[layer.kernel] == min(ways.values())


def test_features_and_predictions(half: Runner, model50: swsl.ResNeXt, photo: Path) -> None:
    images = [photo, noise(300, 400)]
    batch = swsl.preprocess_batch(images)
    error = output_error(model50, batch, logits=half.logits(images), features=half.embed(images))
    assert error <= TOLERANCES["float16"]
    logits = half.logits([photo] * 37)
    assert output_error(model50, batch[:1].expand(37, -1, -1, -1), logits=logits) <= TOLERANCES["float16"]
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
    half.forward(batch)  # the second time, a size gets kernels of its own
    alone = half.forward(batch).cpu()
    with torch.inference_mode():
        assert relative_error(half.forward(batch).cpu(), alone) <= 1e-3
    with torch.cuda.stream(torch.cuda.Stream()):
        assert relative_error(half.forward(batch * 1).cpu(), alone) <= 1e-3
    with torch.autocast("cuda"):
        assert relative_error(half.forward(batch).cpu(), alone) <= 1e-3
    assert relative_error(half.forward(batch.clone().requires_grad_()).cpu(), alone) <= 1e-3


def test_a_callers_own_graph_is_refused(half: Runner) -> None:
    batch = torch.randn(4, 3, 224, 224, device="cuda")
    before = half.forward(batch).cpu()
    with (
        pytest.raises(RuntimeError, match="is being captured on the caller's stream"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        half.forward(batch)
    assert relative_error(half.forward(batch).cpu(), before) <= 1e-3


def test_random_numbers_of_the_caller_are_left_alone(frozen50: Path) -> None:
    with ThreadPoolExecutor() as threads:
        making = threads.submit(Runner, frozen50, device="cuda", dtype="float16", batch_size=3)
        while not making.done():  # graphs are captured meanwhile
            torch.rand(5, device="cuda")
    torch.cuda.manual_seed(7)
    expected = torch.rand(5, device="cuda")
    torch.cuda.manual_seed(7)
    for _ in range(2):
        making.result().forward(torch.zeros(2, 3, 224, 224))
    assert torch.equal(torch.rand(5, device="cuda"), expected)


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

    def work(runner: Runner) -> None:
        for size in (8, 1, 5, 8, 3):
            error = relative_error(runner.forward(batch[:size]).cpu(), expected[:size])
            assert error <= tolerance(runner.info.dtype), (runner, size)
            assert torch.equal(runner.preprocess(images[:size]), pixels[:size]), runner

    with ThreadPoolExecutor(2 * len(runners)) as threads:
        list(threads.map(work, runners * 2))


def test_one_runner_serves_many_threads(half: Runner) -> None:
    batches = [torch.randn(size, 3, 224, 224) for size in (16, 1, 7, 16)]
    alone = [half.forward(batch).cpu() for batch in batches]

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(10):
                logits = half.forward(batches[index].cuda()).cpu()
                assert relative_error(logits, alone[index]) <= TOLERANCES["float16"], index

    with ThreadPoolExecutor(len(batches)) as threads:
        list(threads.map(work, range(len(batches))))


def test_streams_of_a_fresh_runner(frozen50: Path, photo: Path) -> None:
    runner = Runner(frozen50, device="cuda", dtype="float16", batch_size=16)
    for batch_size in (5, 11, 5, 16):  # both forward passes meet sizes that have not come yet
        for _ in range(4):  # more streams than LibTorch's pool has, in all
            results = list(runner.stream([photo] * 60, batch_size=batch_size, top_k=1))
            assert not any(result.error for result in results)
            assert len({result.predictions[0].index for result in results}) == 1


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
            runner.forward(torch.zeros(1, 3, 8192, 8192))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
