"""The four published variants: every published fact about them, and how to build one."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from . import weights as _weights
from .preprocess import PreprocessSpec
from .resnext import ResNeXt
from .state_dicts import read_state_dict

WEIGHTS_LICENSE = "CC-BY-NC-4.0"
PAPER = "https://arxiv.org/abs/1905.00546"

_URL = "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/"


@dataclass(frozen=True)
class Training:
    """How the published weights were trained (Yalniz et al., https://arxiv.org/abs/1905.00546)."""

    data: tuple[str, ...] = ("IG-1B-Targeted", "ImageNet")
    techniques: tuple[str, ...] = ("semi-weakly supervised", "SGD with momentum", "weight decay")
    learning_rate: float = 0.0015
    epochs: int = 30
    batch_size: int = 1536
    weight_decay: float = 1e-4
    gpus: int = 64


class Top1(NamedTuple):
    """ImageNet-class accuracies in timm's results tables, percentages."""

    imagenet: float
    real: float
    v2: float
    a: float
    r: float
    sketch: float


@dataclass(frozen=True)
class Variant:
    """One published model. Accuracies are percentages; sizes are bytes."""

    name: str
    layers: tuple[int, int, int, int]
    groups: int
    width_per_group: int
    parameters: int
    published_flops: int
    """As the model index states it; 1.25 to 1.3 times ``macs``, by a way of counting that is not documented."""
    macs: int
    """Multiply-accumulates of convolutions and the classifier for one image of 224×224, counted."""
    file_size: int
    url: str
    sha256_prefix: str
    """The first 8 hex digits of the published file's SHA-256."""
    top1: float
    """ImageNet validation top-1, as published in the model index."""
    top5: float
    timm_top1: Top1
    note: str = ""
    license: str = WEIGHTS_LICENSE
    training: Training = field(default_factory=Training)
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)


_50, _101 = (3, 4, 6, 3), (3, 4, 23, 3)

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        variant.name: variant
        for variant in (
            Variant(
                "swsl_resnext50_32x4d", _50, 32, 4, 25_028_904, 5_472_648_192, 4_230_479_872, 100_428_550,
                _URL + "semi_weakly_supervised_resnext50_32x4-72679e44.pth", "72679e44",
                82.17, 96.23, Top1(82.16, 87.57, 72.5, 33.1, 69.1, 50.5),
            ),
            Variant(
                "swsl_resnext101_32x4d", _101, 32, 4, 44_177_704, 10_298_145_792, 7_969_996_800, 177_341_913,
                _URL + "semi_weakly_supervised_resnext101_32x4-3f87e46b.pth", "3f87e46b",
                83.22, 96.77, Top1(83.27, 88.11, 74.0, 41.6, 72.7, 53.6),
            ),
            Variant(
                "swsl_resnext101_32x8d", _101, 32, 8, 88_791_336, 21_180_417_024, 16_414_015_488, 356_056_638,
                _URL + "semi_weakly_supervised_resnext101_32x8-b4712904.pth", "b4712904",
                84.27, 97.17, Top1(84.28, 88.76, 75.5, 51.2, 75.6, 56.4),
                "the best of the four on nearly every test set",
            ),
            Variant(
                "swsl_resnext101_32x16d", _101, 32, 16, 194_026_792, 46_623_691_776, 36_163_289_088, 777_518_664,
                _URL + "semi_weakly_supervised_resnext101_32x16-f3559a9c.pth", "f3559a9c",
                83.34, 96.84, Top1(83.34, 87.61, 73.7, 45.9, 76.2, 57.5),
                "the published file was saved wrongly and never replaced: it scores below the paper's 84.8 "
                "(facebookresearch/semi-supervised-ImageNet1K-models, issues 1 and 3); prefer swsl_resnext101_32x8d",
            ),
        )
    }
)  # fmt: skip
"""The four variants by name."""


def find_variant(name: str) -> Variant:
    """The variant called ``name``.

    Raises:
        ValueError: no such variant; the message offers the nearest names.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(str(name), VARIANTS, n=2, cutoff=0.5) or list(VARIANTS)
    raise ValueError(f"model: there is no variant {name!r}; did you mean {' or '.join(near)}?")


def create_model(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int = 1000,
    progress: bool = True,
) -> ResNeXt:
    """Build a variant, in training mode as PyTorch has it: call ``.eval()`` before inference.

    The published weights are CC-BY-NC 4.0: non-commercial use only.

    Args:
        name: one of `VARIANTS`.
        pretrained: load the published weights, from torch.hub's cache or by download; False leaves a fresh
            initialisation. Ignored where ``weights`` is given.
        weights: a path or URL to load instead: .pth, .pt or .safetensors, of this variant; a state dict, or what a training
            program saved it in (a warning then says what was taken).
        num_classes: rows of the classifier. Other than 1000, everything but the classifier is loaded and the classifier
            is freshly initialised (unless the file's has this very size); 0 builds none and the model returns
            pooled features N×2048.
        progress: show a bar while downloading.

    Returns:
        The model on the CPU in float32, images N×3×H×W to logits N×num_classes, its facts as ``model.variant``.

    Raises:
        ValueError: an unknown name (the nearest are offered) or a negative ``num_classes``.
        swsl.WeightsError: the weights cannot be had or do not fit; the message says why and what to do.
    """
    variant = find_variant(name)
    model = ResNeXt(variant.layers, variant.groups, variant.width_per_group, num_classes)
    model.variant = variant
    if pretrained or weights is not None:
        path = find_weights(variant, weights, progress=progress)
        state = read_state_dict(path)
        _refuse_other_variant(state, variant, path)
        _weights.load_into(model, state, path)
    return model


def find_weights(
    variant: Variant, weights: str | os.PathLike[str] | None = None, *, progress: bool = True
) -> Path:
    """The local file of a variant's weights: the published ones, downloaded if need be, or a path or URL instead.

    Raises:
        swsl.WeightsError: there is no such file, or the download failed.
    """
    if weights is not None:
        return _weights.locate(weights, progress=progress)
    return _weights.download(variant.url, sha256_prefix=variant.sha256_prefix, progress=progress)


def _refuse_other_variant(state: _weights.StateDict, variant: Variant, path: os.PathLike[str]) -> None:
    architecture = _weights.architecture_of(state)
    for other in VARIANTS.values():
        if (other.layers, other.groups, other.width_per_group) == architecture and other is not variant:
            raise _weights.WeightsError(
                f"weights: {path} holds {other.name}, not {variant.name}; ask for that model instead"
            )


def _entrypoint(variant: Variant) -> Callable[..., ResNeXt]:
    def entrypoint(
        *,
        pretrained: bool = True,
        weights: str | os.PathLike[str] | None = None,
        num_classes: int = 1000,
        progress: bool = True,
    ) -> ResNeXt:
        return create_model(
            variant.name, pretrained=pretrained, weights=weights, num_classes=num_classes, progress=progress
        )

    entrypoint.__name__ = entrypoint.__qualname__ = variant.name
    spec = variant.preprocess
    entrypoint.__doc__ = f"""\
{variant.name}: ResNeXt-{3 * sum(variant.layers) + 2} {variant.groups}x{variant.width_per_group}d, semi-weakly supervised on \
{" and ".join(variant.training.data)}.

{variant.parameters:,} parameters, {variant.macs / 1e9:.2f} G multiply-accumulates at 224x224, ImageNet top-1 {variant.top1} %, \
top-5 {variant.top5} %.
{f"Note: {variant.note}." if variant.note else ""}
The weights are {variant.license}: non-commercial use only. Paper: {PAPER}

Input: RGB images N×3×H×W, float32, H and W at least 32; for the published accuracy resize the shorter side to 256 \
({spec.interpolation}, antialiased), crop the centre {spec.input_size[0]}×{spec.input_size[1]}, scale to 0..1 and normalise with mean \
{spec.mean} and std {spec.std}: `swsl.preprocess(image)`.
Output: logits N×num_classes.

Args:
    pretrained (bool): load the published weights ({variant.file_size / 1e6:.0f} MB, downloaded once, hash checked).
    weights (path or URL): load these instead: a state dict, or a training program's checkpoint of one.
    num_classes (int): other than 1000, the classifier is freshly initialised; 0 gives pooled features N×2048.
    progress (bool): show a bar while downloading.
"""
    return entrypoint


swsl_resnext50_32x4d = _entrypoint(VARIANTS["swsl_resnext50_32x4d"])
swsl_resnext101_32x4d = _entrypoint(VARIANTS["swsl_resnext101_32x4d"])
swsl_resnext101_32x8d = _entrypoint(VARIANTS["swsl_resnext101_32x8d"])
swsl_resnext101_32x16d = _entrypoint(VARIANTS["swsl_resnext101_32x16d"])
