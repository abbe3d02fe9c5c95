"""Image files of every kind that the tests of decoding take."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    noise = np.random.default_rng(seed).normal(0, 20, (height, width, channels))
    pixels = 127 + 100 * np.sin(x / (7 + c) + y / (11 - c) + c) + noise
    return pixels.clip(0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png(
    size: tuple[int, int], depth: int, colour: int, interlaced: bool, before: bytes = b"", after: bytes = b""
) -> bytes:
    """Random samples under random filters; Pillow writes few of the kinds that it reads."""
    random = np.random.default_rng(depth * 100 + colour * 10 + interlaced)
    height, width = size
    steps = (
        [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        if interlaced
        else [(0, 0, 1, 1)]
    )
    rows = b""
    for left, top, across, down in steps:
        columns = len(range(left, width, across))
        for _ in range(top, height, down) if columns else ():
            samples = random.integers(0, 256, (columns * CHANNELS[colour] * depth + 7) // 8, dtype=np.uint8)
            rows += bytes([random.integers(5)]) + samples.tobytes()
    data = zlib.compress(rows)
    half = len(data) // 2
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), before, chunk(b"IDAT", data[:half]), chunk(b"IDAT", data[half:]),
         after, chunk(b"IEND", b""))
    )  # fmt: skip


def png_kinds() -> Iterator[tuple[int, int]]:
    for colour, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
        yield from ((colour, depth) for depth in depths)


def zero_bits(count: int) -> bytes:
    """Filled up with ones, as JPEG has it."""
    whole, rest = divmod(count, 8)
    return bytes(whole) + bytes([0xFF >> rest] if rest else [])


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg_of_scans(count: int, height: int = 32, width: int = 48) -> bytes:
    """A grey progressive JPEG with so many scans, all complete and all zero: a few bytes each."""
    blocks = -(-height // 8) * -(-width // 8)
    code_zero = bytes(
        [1, *[0] * 15]
    )  # "0" stands for one symbol: no difference, and 2^14 blocks without coefficients
    data = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    data += segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    data += segment(0xC4, b"\x00" + code_zero + b"\x00") + segment(0xC4, b"\x10" + code_zero + b"\xe0")
    data += segment(0xDA, b"\1\1\0\0\0\0") + zero_bits(blocks)
    rest = segment(0xDA, b"\1\1\0\1\x3f\0") + zero_bits(15 * -(-blocks // 2**14))
    return data + rest * (count - 1) + b"\xff\xd9"


def starts_of_scans(jpeg: bytes) -> list[int]:
    """Where each scan's marker is, and at last the end marker, of a sound file."""
    starts, at = [], 2
    while jpeg[at : at + 2] != b"\xff\xd9":
        if jpeg[at] == 0xFF and jpeg[at + 1] not in (0, 0xFF, *range(0xD0, 0xD8)):
            if jpeg[at + 1] == 0xDA:
                starts.append(at)
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        else:
            at += 1
    return [*starts, at]


def without_last_scans(jpeg: bytes) -> Iterator[bytes]:
    """The file with one scan, with two, and so on, up to all but one."""
    for start in starts_of_scans(jpeg)[1:-1]:
        yield jpeg[:start] + b"\xff\xd9"


# Kinds that Pillow reads and does not write; libjpeg-turbo has written them.
RARE_JPEGS = {
    name: base64.b64decode(text)
    for name, text in {
        "lossless grey": (
            "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALCAAMABEBAREA/8QAGQABAQEBAQEAAAAAAAAAAAAABQQDAQIA/9oACAEBAAEAAOJp"
            "pX206984SxHmmF3JpIW1b+uZTRQGmFmXJI3V76fZzxwHmFlmWo32U6d8YSwnmGFlm2321bd85SxHnFmFmHV3Vb++ZzRwHGFl"
            "mGwVWUafZ4SQnGlllmnw006984SxHmmFlmHQx7b+uZTRQGmFmFnQRTa6fZzxwHmFlmGnxSY+++MJYTzDCyzToZMM++cpYjzi"
            "zCzDoI5svv/Z"
        ),
        "lossless": (
            "/9j/7gAOQWRvYmUAZAAAAAAA/8MAEQgADAARA1IRAEcRAEIRAP/EABoAAQEBAQEBAQAAAAAAAAAAAAUEAwIBAAf/2gAMA1IA"
            "RwBCAAEAAPP1P9ZTplT1iS9Pv5NtwMplL1iL9PM5NOwMhlLjiLnPMzNO+Mh0Lj3u2xT3iS6gQ8NtyMqmL3iM6gL8NOyMgmLi"
            "iMmgLyNO8Mg6Li3Mmqu1mS0gR+PuzMrnL3jL0gM+PNzMPnLijLkgMxPN5MP9Li1LkpMxtt7lR9Pv4MswMplL0hL9PN4MOwMh"
            "lLkhLwPNzMO+Mh0LkpLwrNzvt9jv5OtyLqlM2iL9PM5OOyLglMjiLmPMyOO+Lg7Mj3LmqMyuO+Rr8juzMqmL3jL7gM8ONzMg"
            "mLijLlgMxON8Mg6Li1LlqMxtN8Qg6Rq4iswLokL0hL+ONzNPwLhkLlhLwON4NP8AS4dC5aS8LDeLz/UYdE6coaZS9Yi/TzOT"
            "TsDIZS44i5zzMzTvjIdC49y56zM7jvkYdE4909sYN4jOoC/DTsjIJi4ojJoC8jTvDIOi4tzJqi8rTvEIOkot1Jqk9ZodIDPj"
            "zczD5y4oy5IDMTzeTD/S4tS5KTMbTebz/UotU5KVMbVO5YfTzeDDsDIZS5IS8DzczDvjIdC5KS8Kzc7zvkYdEpKVMK1M70/Y"
            "4uTjsi4JTI4i5jzMjjvi4OzI9y5qjMrjvkYO0o905qlMrlPkUv/Z"
        ),
        "arithmetic grey": (
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1R"
            "V19iZ2hnPk1xeXBkeFxlZ2P/yQALCAAYACEBAREA/8wABgAQEAX/2gAIAQEAAD8A/wB4DIqyC/MjjybYYT4oknmKjw9o5JUI"
            "0ESpFkHEaX7EcvEd+2lCLKj5Eg+FT/8AU0XBzOnmUkP05TPlRDWNaehbJy1xhndsb+8p6H+ZwPKFdI0NFBlFmWdDml9fy6oe"
            "VnxGOwmbpSPNt6rn3mpZW5ltE4YP8oP2kkFQNJ+4UiGOhIQ4/ZWMU3INGR20uaOyBcqwnMHtgP/Z"
        ),
        "arithmetic progressive": (
            "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1R"
            "V19iZ2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
            "Y2NjY2NjY2NjY2NjY2P/ygARCAAYACEDASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAf6PbOYAlxhcLjDLB2Iv5yXU"
            "UBOwWhCIUQa7JiOA/8wABBAF/9oACAEBAAEFAhgdfjvczTKKiusYVsNMu8z6wOGbNzj/zAAEEQX/2gAIAQMBAT8B8244E5p2"
            "esqXjAK2UCTz3P/MAAQRBf/aAAgBAgEBPwHyB6QdAZq17NYLK8frFoQnsP/MAAQQBf/aAAgBAQAGPwLaQqGoCp5NXUVd646h"
            "gP/MAAQQBf/aAAgBAQABPyGFYVPG54JdesQ/yjLSSouQUT+08HhIdK34lP/aAAwDAQACAAMAAAAQy426NoD/zAAEEQX/2gAI"
            "AQMBAT8Qqh69UoCRVLSLYNZSXKI1HKT/zAAEEQX/2gAIAQIBAT8QLGQ/zgJ+oMBbH1iWNvT/zAAEEAX/2gAIAQEAAT8QUCbX"
            "6CGjLgh3bxGIuNtbkn6PH4dRkBojNxoJS/1/mhbHDF5EhNXeEOXawH6sZ+5DciYZxk5KrgvPleGcq6DemQ5A/9k="
        ),
    }.items()
}
