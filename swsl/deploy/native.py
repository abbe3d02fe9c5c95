"""The compiled extension `swsl._C`: whether it can be loaded, and images in the forms that it takes."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import __path__ as package_path
from ..image import Fetched, ImageError, ImageSource, fetch, is_pillow, is_url, load_image

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image


def _compiled_parts() -> Path:
    """Where setup.py put them: into the package or, of an editable installation, into a folder beside the other packages."""
    package = Path(__file__).parents[1]
    found = find_spec("swsl_compiled")
    for folder in found.submodule_search_locations or () if found else ():
        source = Path(folder, "source.txt")
        if source.is_file() and Path(source.read_text("utf-8")) == package.resolve():
            return Path(folder)
    return package


COMPILED = _compiled_parts()
"""The folder of the compiled parts: the extensions, lib/, include/, share/, and what setup.py says of the build."""

if str(COMPILED) not in package_path:
    package_path.append(str(COMPILED))


def extension() -> ModuleType:
    """`swsl._C`, the core, which runs with any torch. Where libjpeg or libpng, with which it was built, cannot be loaded, Pillow
    decodes.

    Raises:
        ImportError: it is not built, or cannot be loaded.
    """
    try:
        try:
            from .. import _C
        except ImportError as error:
            suffix = "dylib" if sys.platform == "darwin" else "so"
            without_decoders = COMPILED / "lib" / "without_decoders" / f"libswsl.{suffix}"
            if not (re.search("jpeg|png", str(error), re.IGNORECASE) and without_decoders.is_file()):
                raise
            ctypes.CDLL(str(without_decoders))  # has the name by which the extension asks for its library
            from .. import _C
    except ImportError as error:
        reason = str(error)
        failure = COMPILED / "_build_failure.txt"
        if failure.is_file():
            reason = "it could not be compiled on installation:\n" + failure.read_text("utf-8")
        elif not any(COMPILED.glob("_C*.so")):
            reason = "the source tree has not been installed (pip install .)"
            checkout = COMPILED.parent.resolve()
            if PathFinder.find_spec("swsl", [path for path in sys.path if Path(path).resolve() != checkout]):
                reason = f"Python took the sources in {checkout} for the installed package; start it in another folder"
        raise ImportError(f"swsl's compiled runner is not available: {reason}") from error
    return _C


def libtorch_record() -> dict[str, Any]:
    """How the LibTorch part was built: ``torch`` (the release it runs with), ``cuda``, ``cuda_kernels``, ``nvjpeg``, and
    ``left_out``, which says what was not built and why ("" if all was)."""
    record: dict[str, Any] = json.loads((COMPILED / "_libtorch.json").read_text("utf-8"))
    return record


def build_info() -> dict[str, Any]:
    """How the compiled runner was built.

    Returns:
        ``compiled`` (bool) and, where it is False, ``reason``; else ``swsl`` (the version), ``jpeg``, ``png`` and
        ``other_formats`` (what decodes them: "libjpeg", "libpng" or "Pillow"), and of its LibTorch part: ``torch`` (the release
        that it was built with, "" where there is no such part), ``cuda`` (whether torch's CUDA libraries are linked),
        ``cuda_kernels`` (whether our own were compiled: without them CUDA devices run TorchScript, and the CPU prepares the
        images), ``nvjpeg`` (whether the option of that name was compiled; the library is looked for when it is asked for) and
        ``left_out`` (what of all this could not be built, and why; "" if all was).
    """
    try:
        built = extension().build_info()
    except ImportError as error:
        return {"compiled": False, "reason": str(error)}
    return {
        "compiled": True,
        "swsl": built["swsl"],
        "jpeg": "libjpeg" if built["jpeg"] else "Pillow",
        "png": "libpng" if built["png"] else "Pillow",
        "other_formats": "Pillow",
        **{"torch": "", "cuda": False, "cuda_kernels": False, "nvjpeg": False, **libtorch_record()},
    }


def libtorch() -> ModuleType:
    """`swsl._libtorch`. Once it is loaded, the core has LibTorch's engines: float16, networks that have no kernels in the core, and
    CUDA devices. Checked before it is loaded: loading a binary of another torch can crash.

    Raises:
        ImportError: it is not built, or for another torch.
    """
    if "swsl._libtorch" not in sys.modules:
        record = libtorch_record()
        again = "; install swsl again where this torch is: pip install --no-build-isolation --force-reinstall --no-deps ."
        if "torch" not in record:
            raise ImportError(f"swsl was built without {record['left_out'].rstrip()}{again}")
        if torch.__version__.split("+")[0] != record["torch"]:
            raise ImportError(
                f"swsl's LibTorch part was built with torch {record['torch']}, but this is torch {torch.__version__}, "
                f"and binaries of one release do not run with another{again}"
            )
        if record["cuda"] and torch.version.cuda is None:
            raise ImportError(
                f"swsl's LibTorch part was built with a CUDA build of torch, but this is torch {torch.__version__}, "
                f"a CPU build without the libraries it is linked to{again}"
            )
    extension()
    from .. import _libtorch

    return _libtorch


def as_tensor(numbers: Any) -> Tensor:
    """What the extension returns, as a tensor of the same shape, dtype and memory."""
    view = memoryview(numbers)
    shape, dtype = view.shape or (), {"f": torch.float32, "B": torch.uint8}[view.format]
    if not view.nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(view.cast("B"), dtype=dtype).view(shape)


def plain(batch: Tensor) -> Tensor:
    """A tensor on the CPU whose memory holds its numbers, as the extension takes it.

    Raises:
        ValueError: it has no such memory, being sparse.
    """
    if batch.layout != torch.strided:
        raise ValueError(
            f"batch: expected a floating-point tensor N×3×height×width, got one in {batch.layout}"
        )
    return batch.detach().cpu().resolve_neg()


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

    Bytes from a URL come with their name. What this has made is left as it is.

    Raises:
        ImageError: the network has no such image, or a Pillow image no pixels.
        TypeError: not an image of any kind.
    """
    if isinstance(image, Tensor) or (hasattr(image, "__array_interface__") and not is_pillow(image)):
        _check_pixels(image)
        return image.cpu() if isinstance(image, Tensor) else image
    if isinstance(image, (bytes, bytearray, memoryview, Fetched)):
        return image
    if isinstance(image, (str, os.PathLike)):
        name = os.fsdecode(image)
        return Fetched(fetch(name), name) if is_url(name) else name
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
