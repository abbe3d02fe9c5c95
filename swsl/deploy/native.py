"""The compiled extension `swsl._C`: whether it can be loaded, and images in the forms that it takes."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..image import ImageError, ImageSource, fetch, is_pillow, is_url, load_image

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image

PACKAGE = Path(__file__).parents[1]
_BUILD_RECORD = PACKAGE / "_build.json"  # written by CMake beside the extension
_BUILD_FAILURE = PACKAGE / "_build_failure.txt"  # written by setup.py


def extension() -> ModuleType:
    """`swsl._C`. Checked before it is loaded: loading an extension of another torch can crash.

    Raises:
        ImportError: it is not built, or for another torch.
    """
    if "swsl._C" not in sys.modules:
        again = "; build it again: pip install --force-reinstall --no-deps swsl"
        if not _BUILD_RECORD.is_file():
            reason = (
                "no compiled runner in this package: the source tree has not been installed (pip install .)"
            )
            if _BUILD_FAILURE.is_file():
                reason = "it could not be compiled on installation:\n" + _BUILD_FAILURE.read_text("utf-8")
            raise ImportError(f"swsl's compiled runner is not available: {reason}")
        build = json.loads(_BUILD_RECORD.read_text("utf-8"))
        if torch.__version__.split("+")[0] != build["torch"]:
            raise ImportError(
                f"swsl's compiled runner was built with torch {build['torch']}, but this is torch {torch.__version__}, "
                f"and binaries of one release do not run with another{again}"
            )
        if build["cuda"] and torch.version.cuda is None:
            raise ImportError(
                f"swsl's compiled runner was built with a CUDA build of torch, but this is torch {torch.__version__}, "
                f"a CPU build without the libraries it is linked to{again}"
            )
    from .. import _C

    return _C


def joined(parts: Sequence[Tensor]) -> Tensor:
    """What ``torch.cat`` makes of contiguous CPU tensors of one dtype, copied by hand: torch's operators could wait for
    threads that a fork has left behind."""
    whole = torch.empty(sum(len(part) for part in parts), *parts[0].shape[1:], dtype=parts[0].dtype)
    place = whole.data_ptr()
    for part in parts:
        ctypes.memmove(place, part.data_ptr(), part.nbytes)
        place += part.nbytes
    return whole


def prepare(image: ImageSource, exif_orientation: bool, max_pixels: int) -> Any:
    """What the extension takes: a path, bytes, or pixels H×W×3. It decodes the first two, and asks `decode_other` where it cannot.

    Bytes from a URL come with their name.

    Raises:
        ImageError: the network has no such image, or a Pillow image no pixels.
        TypeError: not an image of any kind.
    """
    if isinstance(image, Tensor) or (hasattr(image, "__array_interface__") and not is_pillow(image)):
        _check_pixels(image)
        return image.cpu() if isinstance(image, Tensor) else image
    if isinstance(image, (bytes, bytearray, memoryview)):
        return image
    if isinstance(image, (str, os.PathLike)):
        name = os.fsdecode(image)
        return (fetch(name), name) if is_url(name) else name
    return _pixels(load_image(image, exif_orientation=exif_orientation, max_pixels=max_pixels))


def decode_other(
    source: str | bytes | bytearray | memoryview, name: str | None, *, exif_orientation: bool, max_pixels: int
) -> memoryview | None:
    """The pixels H×W×3 of what C++ does not decode, by Pillow; None without Pillow. Called from C++'s threads.

    Raises:
        ImageError: Pillow has no pixels for it either.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        return None
    return _pixels(load_image(source, exif_orientation=exif_orientation, name=name, max_pixels=max_pixels))


def _pixels(rgb: Image) -> memoryview:
    return memoryview(rgb.tobytes()).cast("B", (rgb.height, rgb.width, 3))


def _check_pixels(image: Any) -> None:
    shape, dtype = tuple(image.shape), str(getattr(image, "dtype", "")).removeprefix("torch.")
    if dtype != "uint8" or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ImageError(f"image array: expected uint8 height × width × 3, got {dtype} {shape}")
