"""SWSL ResNeXt ImageNet models: as PyTorch modules, as frozen TorchScript, and in a compiled C++ runner."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

with warnings.catch_warnings():  # numpy is not needed here, so that it is missing is no news
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        # By this name `python -m swsl` makes one line of it.
        raise ImportError(
            "no torch: pip install torch, or in swsl's folder pip install .", name=__name__
        ) from error

from .image import ImageError, load_image
from .preprocess import PreprocessSpec, preprocess, preprocess_batch
from .resnext import ResNeXt
from .variants import VARIANTS, Variant, create_model
from .version import __version__
from .weights import WeightsError

if TYPE_CHECKING:
    from .deploy.batching import DynamicBatcher
    from .deploy.eager import EagerRunner
    from .deploy.export import export_model
    from .deploy.native import build_info
    from .deploy.runner import Runner, cmake_prefix_path
    from .deploy.triton_repository import export_triton
    from .formats.metadata import ModelError
    from .formats.onnx_graph import export_onnx
    from .formats.timm_folder import export_timm
    from .labels import LABELS

_LAZY = {
    "LABELS": "labels",
    "DynamicBatcher": "deploy.batching",
    "EagerRunner": "deploy.eager",
    "ModelError": "formats.metadata",
    "build_info": "deploy.native",
    "export_model": "deploy.export",
    "export_onnx": "formats.onnx_graph",
    "export_timm": "formats.timm_folder",
    "export_triton": "deploy.triton_repository",
    "Runner": "deploy.runner",
    "cmake_prefix_path": "deploy.runner",
}


def __getattr__(name: str) -> Any:
    """What most programs do without is imported on its first use."""
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "LABELS",
    "VARIANTS",
    "DynamicBatcher",
    "EagerRunner",
    "ImageError",
    "ModelError",
    "PreprocessSpec",
    "ResNeXt",
    "Runner",
    "Variant",
    "WeightsError",
    "__version__",
    "build_info",
    "cmake_prefix_path",
    "create_model",
    "export_model",
    "export_onnx",
    "export_timm",
    "export_triton",
    "load_image",
    "preprocess",
    "preprocess_batch",
]
