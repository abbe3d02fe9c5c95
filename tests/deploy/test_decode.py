"""The compiled decoders against Pillow: the same pixels, and the same files refused."""

from __future__ import annotations

import io
import itertools
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_files import (
    CHANNELS,
    RARE_JPEGS,
    chunk,
    jpeg_of_scans,
    picture,
    png,
    png_kinds,
    saved,
    without_last_scans,
)
from PIL import Image, ImageOps, PngImagePlugin

import swsl
from swsl.deploy import runner


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    info = runner.build_info()
    if not info["compiled"]:
        (pytest.fail if os.environ.get("SWSL_REQUIRE_RUNNER") else pytest.skip)(str(info["reason"]))
    # With Pillow in their place, Pillow would be compared with itself.
    assert (info["jpeg"], info["png"]) == ("libjpeg", "libpng")


def pillow(data: bytes, exif_orientation: bool = False) -> np.ndarray | None:
    try:
        image = Image.open(io.BytesIO(data))
        return np.asarray((ImageOps.exif_transpose(image) if exif_orientation else image).convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None


def decoded(data: bytes, exif_orientation: bool = False) -> np.ndarray | None:
    try:
        return runner.decode_image(data, exif_orientation=exif_orientation).numpy()
    except swsl.ImageError:
        return None


def assert_same(data: bytes, exif_orientation: bool = False) -> None:
    expected = pillow(data, exif_orientation)
    assert expected is not None
    np.testing.assert_array_equal(decoded(data, exif_orientation), expected, strict=True)


SIZES = [(1, 1), (1, 17), (17, 1), (7, 9), (16, 16), (33, 31), (100, 131), (3, 257)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_pixels(size: tuple[int, int], progressive: bool) -> None:
    rgb = Image.fromarray(picture(*size))
    cmyk = Image.frombytes("CMYK", rgb.size, picture(*size, 4).tobytes())
    for quality, restart in itertools.product((30, 90, 100), (0, 1, 3)):
        options = {"quality": quality, "progressive": progressive, "restart_marker_blocks": restart}
        for subsampling in (0, 1, 2):
            assert_same(saved(rgb, "JPEG", subsampling=subsampling, **options))
        for image in (rgb.convert("L"), cmyk):
            assert_same(saved(image, "JPEG", **options))
        assert_same(saved(rgb, "JPEG", keep_rgb=True, **options))


def test_jpeg_of_a_camera(photo: Path) -> None:
    assert_same(photo.read_bytes())
    np.testing.assert_array_equal(runner.decode_image(photo).numpy(), pillow(photo.read_bytes()), strict=True)


@pytest.mark.parametrize(("colour", "depth"), list(png_kinds()))
@pytest.mark.parametrize("interlaced", [False, True])
def test_png_pixels(colour: int, depth: int, interlaced: bool) -> None:
    befores = [b""]
    if colour == 3:
        colours = np.random.default_rng(depth).integers(0, 256, 3 * 2**depth, dtype=np.uint8).tobytes()
        whole, half = chunk(b"PLTE", colours), chunk(b"PLTE", colours[: 3 * 2 ** (depth - 1)])
        befores = [whole, half, whole + chunk(b"tRNS", b"\xff\x00"), whole + chunk(b"tRNS", bytes(2**depth))]
    elif colour in (0, 2):
        befores.append(chunk(b"tRNS", b"\x00\x01" * CHANNELS[colour]))
    for size, before in itertools.product([*SIZES, (2, 2), (4, 5), (5, 4)], befores):
        assert_same(png(size, depth, colour, interlaced, before))


def test_png_small_values_of_16_bits() -> None:
    values = np.arange(512, dtype=np.uint16).reshape(16, 32)
    assert_same(saved(Image.fromarray(values), "PNG"))


@pytest.mark.parametrize("orientation", range(10))
def test_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    block = exif.tobytes()
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'
    for size in ((37, 53), (16, 8)):
        image = Image.fromarray(picture(*size))
        for data in (
            saved(image, "JPEG", exif=exif),
            saved(image, "JPEG", xmp=xmp.encode()),
            saved(image, "PNG", exif=exif),
            png(size, 8, 2, False, after=chunk(b"eXIf", block[6:])),
        ):
            assert_same(data)
            assert_same(data, exif_orientation=True)
        for compressed in (False, True):
            texts = {
                "XML:com.adobe.xmp": xmp,
                "Raw profile type exif": f"\nexif\n{len(block):8}\n{block.hex()}\n",
            }
            for key, text in texts.items():
                info = PngImagePlugin.PngInfo()
                (info.add_itxt if key.startswith("XML") else info.add_text)(key, text, zip=compressed)
                assert_same(saved(image, "PNG", pnginfo=info), exif_orientation=True)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says what is missing
def test_damaged_exif_is_read_as_far_as_it_goes() -> None:
    image = saved(Image.fromarray(picture(9, 13)), "JPEG")
    whole = b"MM\x00*\x00\x00\x00\x08\x00\x02" + struct.pack(">HHII", 0x010F, 2, 9, 38)
    whole += struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + b"\x00\x00\x00\x00Company X"
    for size in range(len(whole) + 1):
        segment = b"Exif\x00\x00" + whole[:size]
        data = image[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + image[2:]
        assert_same(data, exif_orientation=True)


def damaged() -> Iterator[tuple[str, bytes]]:
    rgb = Image.fromarray(picture(50, 61))
    for subsampling, progressive, restart in itertools.product((0, 2), (False, True), (0, 2)):
        options = {"subsampling": subsampling, "progressive": progressive, "restart_marker_blocks": restart}
        yield "-".join(map(str, ("jpeg", *options.values()))), saved(rgb, "JPEG", **options)
    yield "jpeg-grey", saved(rgb.convert("L"), "JPEG", optimize=True)
    yield "jpeg-cmyk", saved(rgb.convert("CMYK"), "JPEG")
    for mode in ("RGB", "L", "P", "1", "RGBA"):
        yield f"png-{mode}", saved(rgb.convert(mode), "PNG")
    yield "png-interlaced", png((21, 30), 8, 2, True, after=chunk(b"tEXt", b"key\x00value" * 9))


DAMAGED = dict(damaged())


@pytest.mark.parametrize("kind", DAMAGED)
def test_truncated_files_are_refused_where_pillow_refuses(kind: str) -> None:
    data = DAMAGED[kind]
    refused = 0
    step = max(1, len(data) // 400)
    for size in sorted({*range(0, len(data), step), *range(max(0, len(data) - 60), len(data))}):
        expected = pillow(data[:size])
        refused += expected is None
        actual = decoded(data[:size])
        assert (actual is None) == (expected is None), size
        if actual is not None:
            np.testing.assert_array_equal(actual, expected, strict=True)
    assert refused > 300


@pytest.mark.parametrize("kind", [kind for kind in DAMAGED if kind.startswith("jpeg")])
def test_jpegs_with_wrong_bytes_are_refused_where_pillow_refuses(kind: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(DAMAGED[kind])
        for _ in range(random.integers(1, 4)):
            data[random.integers(2, len(data))] = random.choice([0, 0xFF, 0xD9, 0xD0, random.integers(256)])
        expected, actual = pillow(bytes(data)), decoded(bytes(data))
        assert (actual is None) == (expected is None), data.hex()
        if actual is not None:
            np.testing.assert_array_equal(actual, expected, strict=True)


def test_png_checksums_are_checked() -> None:
    data = DAMAGED["png-RGB"]
    at = data.index(b"IDAT") + 20
    with pytest.raises(swsl.ImageError, match=r"image bytes: broken PNG: .*"):
        runner.decode_image(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(DAMAGED["jpeg-grey"][:200])
    with pytest.raises(swsl.ImageError, match=r"photo\.jpg: truncated JPEG: its 200 bytes end"):
        runner.decode_image(path)
    path.write_bytes(b"")
    with pytest.raises(swsl.ImageError, match=r"photo\.jpg: "):
        runner.decode_image(path)
    with pytest.raises(swsl.ImageError, match="is a directory"):
        runner.decode_image(tmp_path)
    with pytest.raises(swsl.ImageError, match=r"missing\.jpg"):
        runner.decode_image(tmp_path / "missing.jpg")
    with pytest.raises(swsl.ImageError, match="100000 × 100000 pixels"):
        runner.decode_image(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 100000, 100000, 8, 2, 0, 0, 0))
        )


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_come_from_pillow(kind: str) -> None:
    assert_same(saved(Image.fromarray(picture(20, 30)), kind))


@pytest.mark.parametrize("kind", RARE_JPEGS)
def test_rare_kinds_of_jpeg_have_pillows_pixels(kind: str) -> None:
    assert_same(RARE_JPEGS[kind])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decode") / "tiny.pt"
    model = swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=2).eval()
    swsl.export_model(model, path, spec=swsl.PreprocessSpec(input_size=(64, 64)), labels=["a", "b"])
    return path


@pytest.mark.parametrize("size", [(60, 250), (250, 60), (120, 100)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_without_their_last_scans_have_pillows_pixels(
    size: tuple[int, int], mode: str, tiny: Path
) -> None:
    # libjpeg smooths between their blocks, which a crop's edge shows.
    compiled = runner.Runner(tiny, batch_size=3)
    whole = saved(Image.fromarray(picture(*size)).convert(mode), "JPEG", progressive=True)
    parts = list(without_last_scans(whole))
    for part in parts:
        assert_same(part)
    expected = swsl.preprocess_batch(parts, compiled.spec)
    assert compiled.preprocess(parts).equal(expected)
    embeddings = compiled.embed(parts)
    rows = [result.embedding for result in compiled.stream(parts, outputs="embedding")]
    np.testing.assert_allclose(np.stack(rows), embeddings, rtol=1e-4, atol=1e-5)


def test_what_pillow_decodes_is_decoded_beside_the_forward_pass(tiny: Path, tmp_path: Path) -> None:
    compiled = runner.Runner(tiny, exif_orientation=True, max_pixels=5000)
    rgb = Image.fromarray(picture(50, 61))
    exif = Image.Exif()
    exif[0x0112] = 6
    webp = tmp_path / "turned.webp"
    webp.write_bytes(saved(rgb, "WEBP", exif=exif))
    large = saved(Image.new("L", (90, 90)), "GIF")
    sources = [webp, saved(rgb, "GIF"), RARE_JPEGS["lossless"], large, b"no image", saved(rgb, "PNG")] * 3
    results = list(compiled.stream(sources, batch_size=4, outputs="logits"))
    errors = [str(result.error or "") for result in results[:6]]
    assert errors[:3] == ["", "", ""]
    assert "image bytes: 90 × 90 pixels (height × width); expected at least 1 and at most 5000" in errors[3]
    assert errors[4] == "image bytes: not an image in a format that Pillow reads"
    pixels = [swsl.load_image(source, exif_orientation=True) for source in (*sources[:3], sources[5])]
    expected = compiled.logits(pixels)
    for result, row in zip([*results[:3], results[5]], expected, strict=True):
        np.testing.assert_allclose(result.logits, row, rtol=1e-4, atol=1e-5)


def test_an_unfinished_stream_does_not_disturb_the_programs_end(tiny: Path) -> None:
    # Its threads may be on their way into Python, which is then not there any more.
    program = f"""
import io, swsl
from PIL import Image
file = io.BytesIO()
Image.effect_noise((2000, 2000), 50).save(file, "GIF")
stream = swsl.Runner({str(tiny)!r}, batch_size=1).stream([file.getvalue()] * 30, workers=4)
assert next(stream).error is None
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_jpegs_of_hundreds_of_scans_are_refused() -> None:
    assert_same(jpeg_of_scans(100))
    with pytest.raises(swsl.ImageError, match="a JPEG of more than 100 scans, .*expected at most 100"):
        runner.decode_image(jpeg_of_scans(101))


def test_images_of_too_many_pixels_are_refused(tiny: Path) -> None:
    rgb = Image.new("RGB", (100, 90))
    message = "image bytes: 90 × 100 pixels .* at most 8999; raise max_pixels if you trust it"
    strict, exact = runner.Runner(tiny, max_pixels=8999), runner.Runner(tiny, max_pixels=9000)
    for kind in ("JPEG", "PNG", "BMP"):
        with pytest.raises(swsl.ImageError, match=message):
            runner.decode_image(saved(rgb, kind), max_pixels=8999)
        with pytest.raises(swsl.ImageError, match=message):
            strict.logits([saved(rgb, kind)])
        assert exact.logits([saved(rgb, kind)]).shape == (1, 2)
    with pytest.raises(ValueError, match="max_pixels: expected 1 or more, got 0"):
        runner.Runner(tiny, max_pixels=0)
