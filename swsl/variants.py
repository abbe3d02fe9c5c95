"""The four published variants: every published fact about them, and how to build one."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from . import weights as _weights
from .preprocess import PreprocessSpec
from .resnext import ResNeXt
from .state_dicts import read_state_dict
from .timm_form import TimmFolder, is_folder, read_folder, refuse_options, set_config, timm_config

WEIGHTS_LICENSE = "CC-BY-NC-4.0"
PAPER = "https://arxiv.org/abs/1905.00546"

_URL = "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/"
TIMM_TAG = "fb_swsl_ig1b_ft_in1k"  # timm's word for how these weights were trained


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

    @property
    def architecture(self) -> str:
        """timm's name of it, and torchvision's where that has it."""
        return self.name.removeprefix("swsl_")

    @property
    def names(self) -> tuple[str, str, str]:
        """What it is called: here (and once in timm), in timm, and in Facebook's own torch.hub repository."""
        return self.name, f"{self.architecture}.{TIMM_TAG}", f"{self.architecture}_swsl"


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
    """The variant called ``name``, here, in timm or by Facebook (`Variant.names`).

    Raises:
        ValueError: no such variant; the message offers the nearest, and says of another network why it is none of the four.
    """
    for variant in VARIANTS.values():
        if name in variant.names:
            return variant
    raise ValueError(f"model: {_refusal(str(name))}")


# Names in timm, torchvision and Facebook's repositories, without what says how the weights were trained.
_NAME = re.compile(r"(?:swsl_|ssl_|ig_|tv_)?(?P<architecture>\w+?)(?:_swsl|_ssl|_wsl)?(?:\.(?P<tag>\w+))?")
_ARCHITECTURE = re.compile(
    r"(?P<kind>(?:wide_|legacy_)?(?:se|sk|eca|gc)?(?:resnet|resnext))(?P<depth>\d+)[a-z]*(_\d+)?(x\d+d)?"
)


def _refusal(name: str) -> str:
    """Why a name is no variant's, and what to say instead."""
    if os.path.isdir(name):
        return f"{name!r} is a folder; if it is timm's, say local-dir:{name}"
    if os.path.isfile(name):
        return f"{name!r} is a file; say it as weights (--weights), beside the name of a variant"
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", name) and not re.search(
        r"\.(pth?|pt2|ckpt|safetensors|bin)$", name
    ):
        return f"{name!r} looks like a repository of the Hugging Face Hub; say hf-hub:{name}"
    ours = {variant.architecture: variant.name for variant in VARIANTS.values()}
    parts = _NAME.fullmatch(name)
    architecture = parts["architecture"] if parts else name
    shape = _ARCHITECTURE.fullmatch(architecture)
    if not parts or not shape or (shape["kind"] == "resnext" and not architecture.endswith("d")):
        near = difflib.get_close_matches(name, VARIANTS, n=2, cutoff=0.5) or list(VARIANTS)
        return f"there is no variant {name!r}; did you mean {' or '.join(near)}?"
    if re.search(r"(?<![a-z])ssl(?![a-z])", name):
        why = "was trained semi-supervised, on YFCC100M, without the billion tagged images of the four"
    elif re.search(r"^ig_|(?<![a-z])wsl(?![a-z])", name):
        why = "was trained weakly supervised, with tags as classes and no teacher to choose among the images"
    elif architecture not in ours:
        kind = {"resnet": "a ResNet", "resnext": "a ResNeXt of another shape"}.get(
            shape["kind"], "another network"
        )
        why = f"is {kind}; the four are {', '.join(VARIANTS)}"
    elif parts["tag"]:
        why = f"is this architecture with other weights ({parts['tag']})"
    else:
        why = "is an architecture, whose weights elsewhere are others"
    near = [each for each in ours if (int(shape["depth"]) < 101) == each.startswith("resnext50")]
    nearest = difflib.get_close_matches(architecture, near, n=1, cutoff=0)[0]
    return f"{name!r} {why}; the nearest is {ours[nearest]}"


def names_model(name: object) -> bool:
    """Whether it says by itself which model is meant: a variant or a folder of timm's, not a file of weights."""
    if not isinstance(name, str) or os.path.isfile(name):
        return False
    return is_folder(name) or any(name in variant.names for variant in VARIANTS.values())


def create_model(
    name: str,
    *,
    pretrained: bool = True,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    progress: bool = True,
    **timm_options: Any,
) -> ResNeXt:
    """Build a variant, in training mode as PyTorch has it: call ``.eval()`` before inference.

    The published weights are CC-BY-NC 4.0: non-commercial use only.

    Args:
        name: one of `VARIANTS`, by any of its `names`; or a model in timm's form, ``local-dir:FOLDER`` or
            ``hf-hub:OWNER/NAME``, of the architecture of a variant.
        pretrained: load the published weights, from torch.hub's cache or by download, or the folder's; False leaves a fresh
            initialisation. Ignored where ``weights`` is given.
        weights: a path or URL to load instead: .pth, .pt or .safetensors, of this variant; a state dict, or what a training
            program saved it in (a warning then says what was taken). Or a name, as above: its weights and classes.
        num_classes: rows of the classifier; None takes 1000, or the folder's. With another number than 1000 or the folder's
            everything but the classifier is loaded and the classifier is freshly initialised (unless the file's has this very
            size); 0 builds none and the model returns pooled features N×2048.
        progress: show a bar while downloading; of the Hub's files huggingface_hub shows its own.
        timm_options: what timm's function takes besides; a value that would change something is refused.

    Returns:
        The model on the CPU in float32, images N×3×H×W to logits N×num_classes. A published one has its facts as ``model.variant``;
        its preprocessing is in ``model.pretrained_cfg``, where timm's functions look for it.

    Raises:
        ValueError: an unknown name (the nearest are offered), a negative ``num_classes``, or an option of timm's that is not here.
        TypeError: an option that timm does not have either.
        swsl.WeightsError: the weights or the folder cannot be had or do not fit; the message says why and what to do.
    """
    refuse_options(timm_options)
    asked = None if is_folder(name) else find_variant(name)
    if weights is not None and names_model(weights):
        name, weights, pretrained = str(weights), None, True
    if is_folder(name):
        folder = read_folder(name)
        model = _of_folder(folder, num_classes, asked)
        if pretrained or weights is not None:
            _fill(model, folder, _weights.locate(weights, progress=progress) if weights else None)
        return model
    variant = find_variant(name)
    if asked not in (None, variant):
        raise _weights.WeightsError(
            f"weights: {name} is {variant.name}, not {asked.name}; ask for that model instead"
        )
    classes = 1000 if num_classes is None else num_classes
    model = ResNeXt(variant.layers, variant.groups, variant.width_per_group, classes)
    model.variant = variant
    set_config(model, timm_config(variant.preprocess, classes, **_facts(variant)))
    if pretrained or weights is not None:
        path = find_weights(variant, weights, progress=progress)
        state = read_state_dict(path)
        _refuse_other_variant(state, variant, path)
        _weights.load_into(model, state, path)
    return model


def _facts(variant: Variant) -> dict[str, str]:
    """As timm's ``pretrained_cfg`` has them."""
    return {
        "architecture": variant.architecture,
        "tag": TIMM_TAG,
        "url": variant.url,
        "hf_hub_id": f"timm/{variant.names[1]}",
        "license": variant.license.lower(),
        "origin_url": "https://github.com/facebookresearch/semi-supervised-ImageNet1K-models",
    }


def _of_folder(folder: TimmFolder, num_classes: int | None, asked: Variant | None) -> ResNeXt:
    """The model that a folder describes, without its weights."""
    where = f"weights: {folder.source}: {folder.config_file}: "
    base = folder.architecture.split(".")[0].removeprefix("swsl_")
    variant = next((variant for variant in VARIANTS.values() if variant.architecture == base), None)
    if variant is None:
        raise _weights.WeightsError(f"{where}architecture: {_refusal(folder.architecture)}")
    if asked not in (None, variant):
        raise _weights.WeightsError(
            f"{where}holds {variant.name}, not {asked.name}; ask for that model instead"
        )
    shape = variant.layers, variant.groups, variant.width_per_group
    own = folder.layers or shape[0], folder.groups or shape[1], folder.width_per_group or shape[2]
    classes = folder.num_classes if num_classes is None else num_classes
    labels = folder.labels if classes == folder.num_classes else None
    try:
        model = ResNeXt(*own, classes)
    except ValueError as error:
        raise _weights.WeightsError(f"{where}{error}") from error
    known = {"architecture": variant.architecture} if own == shape else {}
    set_config(model, {**folder.config, **timm_config(folder.spec, classes, labels, **known)})
    if own == shape and folder.config.get("tag") == TIMM_TAG:  # else it shares the architecture only
        model.variant = variant
    return model


def _fill(model: ResNeXt, folder: TimmFolder, other: Path | None) -> None:
    """Load the folder's weights, or those of another file."""
    path = other or folder.weights_file
    state = read_state_dict(path)
    rows = state["fc.weight"].shape[0] if "fc.weight" in state else 0
    if other is None and rows != folder.num_classes:
        raise _weights.WeightsError(
            f"weights: {folder.source}: {folder.config_file} says {folder.num_classes} classes, {path.name} has {rows}"
        )
    _weights.load_into(model, state, path)


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
        num_classes: int | None = None,
        progress: bool = True,
        **timm_options: Any,
    ) -> ResNeXt:
        options: dict[str, Any] = {"pretrained": pretrained, "weights": weights, "num_classes": num_classes}
        return create_model(variant.name, progress=progress, **options, **timm_options)

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
    weights (path or URL): load these instead: a state dict, a training program's checkpoint of one, or a folder of timm's
        (local-dir:FOLDER, hf-hub:OWNER/NAME).
    num_classes (int): other than 1000, the classifier is freshly initialised; 0 gives pooled features N×2048.
    progress (bool): show a bar while downloading.
"""
    return entrypoint


swsl_resnext50_32x4d = _entrypoint(VARIANTS["swsl_resnext50_32x4d"])
swsl_resnext101_32x4d = _entrypoint(VARIANTS["swsl_resnext101_32x4d"])
swsl_resnext101_32x8d = _entrypoint(VARIANTS["swsl_resnext101_32x8d"])
swsl_resnext101_32x16d = _entrypoint(VARIANTS["swsl_resnext101_32x16d"])
