"""The option nvjpeg, which only a GPU can show: python -m pytest -m cuda."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import cuda_marks
from PIL import Image

import swsl
from swsl.deploy.runner import Runner, build_info
from swsl.formats.golden import TOLERANCES, relative_error
from swsl.prediction import Result

pytestmark = cuda_marks()


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
    large = torch.tensor([min(Image.open(io.BytesIO(image)).size) >= 200 for image in images])
    assert of_each[large].max() < 4, (
        of_each
    )  # in small ones the edges, where colours may come from elsewhere, count for more
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

    def work(batch_size: int) -> list[Result]:
        return list(nvjpeg.stream(sources, batch_size=batch_size, outputs="logits"))

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(work, (64, 64, 7, 1)))
    assert [len(results) for results in answers] == [len(sources)] * 4
    for results in answers:
        for number, result in enumerate(results):
            expected = alone[number % 5]
            assert bool(result.error) == (expected is None)
            if expected is not None:
                assert relative_error(result.logits[None], expected) <= TOLERANCES["float16"]


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
