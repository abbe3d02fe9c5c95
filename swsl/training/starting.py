"""What a training run starts from: its model, precision and mixing of images, as its options ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from ..preprocess import PreprocessSpec
from ..resnext import ResNeXt
from ..state_dicts import read_state_dict
from ..timm_form import is_folder, spec_of
from ..variants import WEIGHTS_LICENSE, create_model, names_model
from ..weights import load_into
from ._torchvision import import_torchvision
from .checkpoint import Checkpoint, find_checkpoint, load_model, model_files, variant_of
from .recipe import TrainOptions


def starting_model(options: TrainOptions, classes: int) -> tuple[ResNeXt, PreprocessSpec, str | None]:
    """The model with a classifier of its own, its preprocessing, and the licence that its weights hand down."""
    path = model_files(options.model, options.weights)[0] if options.weights else None
    if options.architecture is None and not options.scratch and (begun := _begun(options, path)):
        source = begun.model
        model = ResNeXt(source.layers, source.groups, source.width_per_group, classes)
        load_into(model, source.state_dict(), path or options.model)
        return model, _resized(begun.spec, options), begun.license
    if options.architecture is None:
        model = create_model(options.model, pretrained=not options.scratch, weights=path, num_classes=classes)
        spec = spec_of(model)
    else:
        model = ResNeXt(**asdict(options.architecture), num_classes=classes)
        spec = PreprocessSpec()
        if path:
            load_into(model, read_state_dict(path), path)
    published = not options.scratch and variant_of(model) is not None
    return model, _resized(spec, options), WEIGHTS_LICENSE if published else None


def _begun(options: TrainOptions, path: Path | None) -> Checkpoint | None:
    """What brings its own preprocessing and licence: an earlier run's checkpoint, or a folder of timm's."""
    if names_model(options.weights) or (path is None and is_folder(options.model)):
        return load_model(options.model, options.weights)
    return find_checkpoint(path) if path else None


def _resized(spec: PreprocessSpec, options: TrainOptions) -> PreprocessSpec:
    if options.input_size is None:
        return spec
    return replace(spec, input_size=(options.input_size, options.input_size))


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """What "auto", "off", "bf16" or "fp16" means on a device; None is no mixed precision.

    Raises:
        ValueError: fp16 on a CPU.
    """
    if amp == "auto":  # on a CPU, bfloat16 is faster only with instructions that few have
        amp = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "off"
    if amp == "fp16" and device.type != "cuda":
        raise ValueError("amp: fp16 needs a GPU; use bf16 or off on a CPU")
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def mixing(options: TrainOptions, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """What blends a batch N×3×H×W and its classes N into a batch and class probabilities N×classes; None for no blending."""
    import_torchvision()
    from torchvision.transforms import v2

    kinds = [
        kind(alpha=alpha, num_classes=classes)
        for kind, alpha in ((v2.MixUp, options.mixup), (v2.CutMix, options.cutmix))
        if alpha > 0
    ]
    return v2.RandomChoice(kinds) if kinds else None
