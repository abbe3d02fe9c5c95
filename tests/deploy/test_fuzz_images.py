"""Mutated image files: decoded whole and for a crop, each has Pillow's pixels, or is refused by both, or differs in a known way.

    SWSL_FUZZ_CASES=100000 pytest -m slow tests/deploy/test_fuzz_images.py -s     # CI's part is smaller
    SWSL_FUZZ_SEED=7 ...                                                   # other mutations; a failure names seed and case

A failing file is written into the folder that the failure names.
"""

from __future__ import annotations

import io
import os
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import RARE_JPEGS, chunk, jpeg_of_scans, picture, png, png_kinds, saved, without_last_scans
from PIL import Image, features

import swsl
from swsl.deploy import runner

CASES = int(os.environ.get("SWSL_FUZZ_CASES", "8000"))
SEED = int(os.environ.get("SWSL_FUZZ_SEED", "0"))
MOST_PIXELS = 1_000_000

# Where the compiled decoders and Pillow judge a file differently, all of it: what Pillow takes and they refuse ("stricter"), and the
# reverse ("laxer"). Whatever both take has the same pixels.
DIFFERENCES = [
    ("png", "stricter: .*broken PNG", "libpng checks every checksum, and the names, order, number and sizes of the chunks it knows"),
    ("png", "stricter: .*truncated PNG: .* row", "rows are missing where the compressed data say they end: Pillow leaves black"),
    ("png", "stricter: .*truncated PNG: .* a chunk", "a chunk other than the pixels goes on beyond the end of the file"),
    ("png", "laxer", "Pillow also reads the chunks that the pixels do not depend on"),
    ("jpeg", "stricter: .*more than 100 scans", "a limit that swsl has and Pillow has not"),
    ("jpeg", "laxer: UnidentifiedImageError", "Pillow wants a marker right behind each segment, libjpeg looks for one"),
]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def jpegs() -> Iterator[tuple[str, bytes]]:
    for size in ((150, 52), (45, 130)):
        rgb = Image.fromarray(picture(*size))
        for progressive in (False, True):
            for restart in (0, 2):
                options = {"progressive": progressive, "restart_marker_blocks": restart, "quality": 60}
                kind = f"jpeg {size} {'progressive' if progressive else 'baseline'} restarts {restart}"
                for subsampling in (0, 1, 2):
                    yield (
                        f"{kind} subsampling {subsampling}",
                        saved(rgb, "JPEG", subsampling=subsampling, **options),
                    )
                yield f"{kind} grey", saved(rgb.convert("L"), "JPEG", **options)
                yield f"{kind} CMYK", saved(rgb.convert("CMYK"), "JPEG", **options)
                yield f"{kind} RGB", saved(rgb, "JPEG", keep_rgb=True, **options)
        whole = saved(rgb, "JPEG", progressive=True, quality=60)
        for i, part in enumerate(without_last_scans(whole)):
            yield f"jpeg {size} with {i + 1} scans", part
    yield from ((f"jpeg {kind}", data) for kind, data in RARE_JPEGS.items())
    yield "jpeg of 99 scans", jpeg_of_scans(99)


def pngs() -> Iterator[tuple[str, bytes]]:
    for colour, depth in png_kinds():
        before = chunk(b"PLTE", picture(16, 16).tobytes()[: 3 * 2**depth]) if colour == 3 else b""
        transparent = {0: b"\0\1", 2: b"\0\1" * 3, 3: b"\0\x80"}.get(colour)
        before += chunk(b"tRNS", transparent) if transparent else b""
        for interlaced in (False, True):
            after = chunk(b"tEXt", b"key\0value")
            yield (
                f"png {colour} {depth} {interlaced}",
                png((13, 30), depth, colour, interlaced, before, after),
            )


def others() -> Iterator[tuple[str, bytes]]:
    rgb = Image.fromarray(picture(13, 30))
    for kind in ("GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "PCX", "SGI"):
        yield kind.lower(), saved(rgb.quantize(32) if kind == "GIF" else rgb, kind)
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        yield f"tiff {compression}", saved(rgb, "TIFF", compression=compression)
    for feature, kind in (("webp", "WEBP"), ("avif", "AVIF"), ("jpg_2000", "JPEG2000")):
        if features.check(feature):
            yield kind.lower(), saved(rgb, kind)


def mutate_bytes(random: random.Random, data: bytearray) -> None:
    """One of the things that happen to any file."""
    at = random.randrange(min(len(data), random.choice((64, 700, len(data)))))
    length = random.choice((1, 2, random.randrange(1, 40)))
    piece = data[at : at + length]
    kind = random.randrange(8)
    if kind < 3:
        data[at] = random.choice(
            (0, 0xFF, 0xD9, 0xD0, 0xDA, 1, random.randrange(256), data[at] ^ 1 << random.randrange(8))
        )
    elif kind == 3:
        del data[at : at + length]
    elif kind == 4:
        data[at:at] = piece
    elif kind == 5:
        data[at:at] = random.randbytes(length)
    elif kind == 6:
        data[at : at + length] = bytes(len(piece))
    elif random.random() < 0.3:
        del data[at + 8 :]


def jpeg_segments(data: bytes) -> list[tuple[int, int]]:
    """Start and end of what lies between markers, scans with their entropy-coded data."""
    starts = [
        i
        for i in range(len(data) - 1)
        if data[i] == 0xFF and 0xBF < data[i + 1] < 0xFF and not 0xD0 <= data[i + 1] < 0xD8
    ]
    return list(zip(starts, [*starts[1:], len(data)], strict=False))


def mutate_jpeg(random: random.Random, data: bytearray) -> None:
    segments = jpeg_segments(data)
    if not segments:
        return
    start, end = random.choice(segments)
    kind = random.randrange(6)
    if kind == 0:
        del data[start:end]
    elif kind == 1:
        data[start:start] = data[slice(*random.choice(segments))]
    elif kind == 2:
        data[end:] = b"\xff\xd9"
    else:  # the head of a segment: sides, sampling, tables, which coefficients a scan has
        scans = [start for start, _ in segments if data[start + 1] == 0xDA]
        at = (random.choice(scans) if scans and kind == 3 else start) + random.randrange(1, 20)
        if at < len(data):
            data[at] = random.choice((0, 1, 2, 0x10, 0x11, 0x21, 0x22, 0x3F, 0xC3, random.randrange(256)))


def png_chunks(data: bytes) -> list[tuple[int, int]]:
    chunks, at = [], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        chunks.append((at, end))
        at = end
    return chunks


def mutate_png(random: random.Random, data: bytearray) -> None:
    """Chunks, and what is inside them with a checksum that is right."""
    chunks = png_chunks(data)
    if not chunks:
        return
    start, end = random.choice(chunks)
    kind = random.randrange(8)
    if kind == 0:
        del data[start:end]
    elif kind == 1:
        data[start:start] = data[slice(*random.choice(chunks))]
    elif kind == 2:
        data[start:end] = chunk(
            random.choice((b"tIME", b"gAMA", b"abcd", b"ABCD", b"PLTE", b"tRNS", b"IEND", b"acTL", b"fcTL")),
            random.randbytes(random.choice((0, 3, 6, 8, 26))),
        )
    elif kind < 6:
        body = bytearray(data[start + 4 : end - 4])
        mutate_bytes(random, body)
        data[start:end] = chunk(bytes(body[:4]), bytes(body[4:]))
    else:  # filters, rows that are missing or too many
        images = [(start, end) for start, end in chunks if data[start + 4 : start + 8] == b"IDAT"]
        try:
            rows = bytearray(zlib.decompress(b"".join(data[start + 8 : end - 4] for start, end in images)))
        except zlib.error:
            return
        if not rows:
            return
        mutate_bytes(random, rows)
        first, last = images[0][0], images[-1][1]
        data[first:last] = chunk(b"IDAT", zlib.compress(bytes(rows), random.choice((0, 6))))


def mutated(case: int, seeds: dict[str, bytes]) -> tuple[str, bytes]:
    chance = random.Random(f"{SEED}-{case}")
    name = chance.choice(list(seeds))
    data = bytearray(seeds[name])
    special: Callable[[random.Random, bytearray], None] | None = {"jpeg": mutate_jpeg, "png": mutate_png}.get(
        name.split()[0]
    )
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if len(data) < 3:
            break
        (special if special and chance.random() < 0.6 else mutate_bytes)(chance, data)
    return name, bytes(data)


def pillow(data: bytes) -> Image.Image | str:
    """The image, or what Pillow says against it."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MOST_PIXELS:
            return "too many pixels"
        return image.convert("RGB")
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def compare(compiled: runner.Runner, kind: str, data: bytes) -> str:
    """ "equal", "refused", one of the known differences, or else a text that begins with "wrong"."""
    expected = pillow(data)
    try:
        whole = runner.decode_image(data, max_pixels=MOST_PIXELS).numpy()
    except swsl.ImageError as error:
        return "refused" if isinstance(expected, str) else known(kind, f"stricter: {error}")
    if isinstance(expected, str):
        return known(kind, f"laxer: {expected}")
    if not np.array_equal(whole, np.asarray(expected)):
        return "wrong: other pixels"
    if max(expected.size) <= 20 * min(expected.size):  # a thin one would be resized to a giant
        cropped = compiled.preprocess([data])
        if not torch.equal(cropped[0], swsl.preprocess(expected, compiled.spec)):
            return "wrong: other pixels where a crop was decoded"
    return "equal"


def known(kind: str, difference: str) -> str:
    for of, pattern, reason in DIFFERENCES:
        if kind == of and re.match(pattern, difference):
            return f"{difference.split(':')[0]}: {reason}"
    return f"wrong: {difference}"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> runner.Runner:
    info = runner.build_info()
    if not info["compiled"]:
        (pytest.fail if os.environ.get("SWSL_REQUIRE_RUNNER") else pytest.skip)(str(info["reason"]))
    path = tmp_path_factory.mktemp("fuzz") / "tiny.pt"
    torch.manual_seed(0)
    model = swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=2).eval()
    swsl.export_model(model, path, spec=swsl.PreprocessSpec(input_size=(32, 32)), labels=["a", "b"])
    return runner.Runner(path, threads=1, max_pixels=MOST_PIXELS)


def test_mutated_images(compiled: runner.Runner, tmp_path: Path) -> None:
    seeds = dict([*jpegs(), *pngs(), *others()])
    for name, data in seeds.items():
        assert compare(compiled, name.split()[0], data) == "equal", name
    counts: Counter[tuple[str, str]] = Counter()
    for case in range(CASES):
        name, data = mutated(case, seeds)
        kind = name.split()[0]
        outcome = compare(compiled, kind, data)
        if outcome.startswith("wrong"):
            path = tmp_path / f"seed-{SEED}-case-{case}.{kind}"
            path.write_bytes(data)
            pytest.fail(f"case {case} of seed {SEED}, made of {name}, is in {path}: {outcome}")
        counts[kind if kind in ("jpeg", "png") else "others", outcome] += 1
    for (kind, outcome), count in sorted(counts.items()):
        print(f"{count:7} {kind}: {outcome}")
    for kind in ("jpeg", "png", "others"):  # mutations that leave nothing, or all, test nothing
        for outcome in ("equal", "refused"):
            assert counts[kind, outcome] > CASES // 100
