"""Images from wherever they are, as decoded Pillow RGB images."""

from __future__ import annotations

import ctypes
import io
import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Union

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, "Image", Tensor, Any]
"""A path or URL, the bytes of an image file, a Pillow image, or a uint8 tensor or array H×W×3 (RGB)."""


class Fetched(NamedTuple):
    """What was behind a URL: an image too, whose errors name the URL."""

    data: bytes
    name: str


class ImageError(ValueError):
    """An image that cannot be used. The message names the file, what was found and what was expected."""


class UnsupportedFormat(ImageError):  # noqa: N818
    """An image, perhaps sound, in a format that is not decoded here."""


MAX_PIXELS = 89_478_485
"""Of an image at most, where nobody says otherwise: Pillow's own Image.MAX_IMAGE_PIXELS."""

MAX_SCANS = 100
"""Of a JPEG at most: each goes through the whole image, whatever little it holds. Encoders write about ten."""

_opening = threading.Lock()

_TIMEOUT_S = 20
_MAX_DOWNLOAD_BYTES = 256 << 20


def load_image(
    source: ImageSource,
    *,
    exif_orientation: bool = False,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image:
    """Decode to a Pillow RGB image.

    Args:
        source: see `ImageSource`.
        exif_orientation: turn the image as its EXIF tag says. Off by default, as in timm and torchvision.
        name: what errors call the image; its path or URL by default.
        max_pixels: an image of more is refused. Pillow has a check of its own: above twice ``PIL.Image.MAX_IMAGE_PIXELS`` that has
            to be raised too.

    Raises:
        ImageError: the file is missing, unreachable, unreadable, no image, truncated, of more than ``max_pixels``,
            or a JPEG of more than 100 scans.
        TypeError: ``source`` is none of the accepted kinds.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("images need Pillow: pip install pillow") from error

    if isinstance(source, Image.Image):
        name = name or "the Pillow image"
        opened: Any = source
    elif isinstance(source, Fetched):
        name = name or source.name
        opened = io.BytesIO(source.data)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name = name or "image bytes"
        opened = io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        name = name or os.fspath(source)
        opened = io.BytesIO(fetch(name)) if is_url(name) else open_regular(source)
    elif isinstance(source, Tensor) or hasattr(source, "__array_interface__"):
        pixels = torch.as_tensor(source)
        if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise ImageError(
                f"{name or 'image array'}: expected uint8 height × width × 3, got {pixels.dtype} {tuple(pixels.shape)}"
            )
        height, width = pixels.shape[:2]
        pixels = pixels.cpu().contiguous()
        return Image.frombytes("RGB", (width, height), ctypes.string_at(pixels.data_ptr(), pixels.numel()))
    else:
        raise TypeError(
            f"image: expected a path, a URL, bytes, a Pillow image or a uint8 height × width × 3 array, got {type(source).__name__}"
        )
    is_file = not isinstance(opened, Image.Image)
    try:
        with opened if is_file else nullcontext():
            if is_file and not opened.read(1):
                raise ValueError("is empty; expected an image file")
            image = _open(opened) if is_file else opened
            if not 1 <= image.width * image.height <= max_pixels:
                raise ValueError(
                    f"{image.height} × {image.width} pixels (height × width); expected at least 1 and at most {max_pixels}"
                    + ("; raise max_pixels if you trust it" if image.width * image.height else "")
                )
            _check_scans(image)
            if exif_orientation:
                image = ImageOps.exif_transpose(image)
            return image.convert("RGB")
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image in a format that Pillow reads") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: {error}; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS and max_pixels"
        ) from error
    # Of whatever kind (AVIF's is a RuntimeError), it means that this file has no usable pixels.
    except Exception as error:
        raise ImageError(f"{name}: {error}") from error


def _open(source: Any) -> Image:
    from PIL import Image

    # catch_warnings changes what all threads share.
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is the limit
        return Image.open(source)


def _check_scans(image: Image) -> None:
    file = getattr(image, "fp", None)
    if image.format not in ("JPEG", "MPO") or file is None:
        return
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    if data.count(b"\xff\xda") > MAX_SCANS and _count_scans(data) > MAX_SCANS:
        raise ValueError(
            f"a JPEG of more than {MAX_SCANS} scans, each of which goes through the whole image; "
            f"expected at most {MAX_SCANS}"
        )


def _count_scans(jpeg: bytes) -> int:
    """Of the first image in the file; embedded ones (thumbnails, films behind it) do not count."""
    marker = re.compile(rb"\xff+([^\x00\xff])")
    scans, at = 0, 2
    while (found := marker.search(jpeg, at)) and found[1] != b"\xd9":
        at, kind = found.end(), found[1][0]
        if kind < 0xC0 or 0xD0 <= kind <= 0xD8:  # no segment: these stand alone
            continue
        scans += kind == 0xDA
        at += int.from_bytes(jpeg[at : at + 2], "big")
    return scans


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A file to read an image from. Never waits, as opening a pipe would, and never touches a device.

    Raises:
        ImageError: it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    name = os.fspath(path)
    try:
        _check_regular(
            os.stat(name), name
        )  # before, for opening alone sets a device or a pipe's writer in motion
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        file = open(name, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115
        try:
            _check_regular(os.fstat(file.fileno()), name)  # after, for it may be another file now
        except ImageError:
            file.close()
            raise
        return file
    except OSError as error:
        raise ImageError(f"{name}: cannot be opened: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name!r}: cannot be opened: {error}") from error  # a zero byte within the name


def _check_regular(status: os.stat_result, name: str) -> None:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        os.close(os.open(name, os.O_RDONLY))
        raise ImageError(f"{name}: is a directory; expected an image file")
    kinds = {"a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    kind = next((kind for kind, matches in kinds.items() if matches(mode)), "a device")
    raise ImageError(f"{name}: is {kind}; expected an image file: save its content to one, or pass its bytes")


def is_pillow(image: object) -> bool:
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def several(images: Iterable[ImageSource]) -> Iterable[ImageSource]:
    """The images, as they are.

    Raises:
        TypeError: one image, which is easily given in place of a list of one; or nothing that can be iterated over.
    """
    one = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike)) or is_pillow(images)
    if one or getattr(images, "ndim", 0) == 3:
        raise TypeError(f"images: expected a list of images, got one {type(images).__name__}; write [image]")
    if not isinstance(images, Iterable):
        raise TypeError(f"images: expected a list of images, got {type(images).__name__}")
    return images


def is_url(source: str) -> bool:
    return bool(re.match(r"https?://", source))


def fetch(url: str) -> bytes:
    """The bytes behind an http(s) URL.

    Raises:
        ImageError: it cannot be reached, or is larger than 256 MiB.
    """
    import http.client
    import urllib.request

    try:
        request = urllib.request.Request(url, headers={"User-Agent": "swsl"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            data = response.read(_MAX_DOWNLOAD_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ImageError(f"{url}: cannot be fetched: {getattr(error, 'reason', error)}") from error
    if len(data) > _MAX_DOWNLOAD_BYTES:
        raise ImageError(f"{url}: larger than {_MAX_DOWNLOAD_BYTES >> 20} MiB, expected a photograph")
    return data
