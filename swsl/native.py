"""The compiled extension `swsl._C`: whether it can be loaded, and images in the forms that it takes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .image import ImageError, ImageSource, fetch, is_pillow, is_url, load_image, open_regular

if TYPE_CHECKING:
    from types import ModuleType

PACKAGE = Path(__file__).parent
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
                "no compiled runner beside this file: the source tree has not been installed (pip install .)"
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
    from . import _C

    return _C


_MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}


def prepare(image: ImageSource, native: ModuleType, exif_orientation: bool) -> Any:
    """What the extension takes: a path, bytes, or pixels H×W×3. Pillow decodes what C++ cannot.

    Raises:
        ImageError: Pillow, or the network, has no pixels for it.
        TypeError: not an image of any kind.
    """
    if isinstance(image, Tensor) or (hasattr(image, "__array_interface__") and not is_pillow(image)):
        _check_pixels(image)
        return image.cpu() if isinstance(image, Tensor) else image
    name = None
    if isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
        if isinstance(name, str) and is_url(name):
            image = fetch(name)
        else:
            with open_regular(name) as file:
                head = file.read(8)
            if _decodes(head, native):
                return name
    if isinstance(image, (bytes, bytearray, memoryview)) and _decodes(bytes(image[:8]), native):
        return image
    try:
        rgb = load_image(image, exif_orientation=exif_orientation, name=name)
    except ImportError:
        if is_pillow(image) or not isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
            raise
        return image if name is None or is_url(name) else name  # without Pillow, C++ says that it cannot
    return memoryview(rgb.tobytes()).cast("B", (rgb.height, rgb.width, 3))


def _decodes(head: bytes, native: ModuleType) -> bool:
    built = native.build_info()
    return any(built[kind] and head.startswith(magic) for kind, magic in _MAGIC.items())


def _check_pixels(image: Any) -> None:
    shape, dtype = tuple(image.shape), str(getattr(image, "dtype", "")).removeprefix("torch.")
    if dtype != "uint8" or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ImageError(f"image array: expected uint8 height × width × 3, got {dtype} {shape}")
