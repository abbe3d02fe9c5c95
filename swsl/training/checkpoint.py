"""The file that training writes: weights with everything needed to use them.

One dict, saved by ``torch.save`` and read with ``weights_only=True``, so that opening it runs no code:

    format        1
    model         the state dict, float32, torchvision's names
    architecture  {"layers", "groups", "width_per_group", "num_classes"}
    variant       name of the published variant of this architecture, or None
    preprocess    the fields of PreprocessSpec
    labels        class names, one for each class
    license       "CC-BY-NC-4.0" where the training started from published weights, else None
    metrics       of these weights on the validation images
    versions      {"swsl", "torch"}
    training      only in last.pth: all that resuming needs (see swsl/training/train.py)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import weights as _weights
from ..labels import LABELS
from ..preprocess import PreprocessSpec
from ..resnext import ResNeXt
from ..state_dicts import OWN_KEYS, read_pickled
from ..system.files import replacing
from ..system.progress import working
from ..timm_form import (
    is_folder,
    labels_or_numbers,
    license_of,
    read_folder,
    set_config,
    spec_of,
    timm_config,
)
from ..variants import (
    TIMM_TAG,
    VARIANTS,
    WEIGHTS_LICENSE,
    create_model,
    find_variant,
    find_weights,
    names_model,
)
from ..version import __version__

_FORMAT = 1


@dataclass
class Checkpoint:
    """A model and what belongs to it.

    Args:
        model: on the CPU in float32.
        spec: how its images are preprocessed.
        labels: class names, one for each class.
        variant: name of the published variant of its architecture, if it is one.
        license: of the weights, where it is known.
        metrics: of these weights on the validation images of their training.
        training: what resuming needs; only in a run's ``last.pth``.
    """

    model: ResNeXt
    spec: PreprocessSpec
    labels: tuple[str, ...]
    variant: str | None = None
    license: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] | None = None


def load_model(name: str, weights: str | os.PathLike[str] | None = None) -> Checkpoint:
    """What ``--model NAME --weights FILE`` means, for every command.

    Args:
        name: the variant to build, or a folder of timm's, unless ``weights`` says itself what it is.
        weights: path or URL of a checkpoint of a training run or of a state dict of the variant, or again a variant's or folder's
            name; None takes the published weights, or the folder's.

    Raises:
        ValueError: no such variant.
        swsl.WeightsError: the weights cannot be had or do not fit.
    """
    if names_model(weights):
        name, weights = str(weights), None
    if is_folder(name):
        return _load_folder(name, weights)
    variant = find_variant(name)
    path = find_weights(variant, weights)
    with working(f"loading {path}"):
        if weights is not None and (checkpoint := find_checkpoint(path)):
            return checkpoint
        model = create_model(variant.name, weights=path)
    return Checkpoint(model, variant.preprocess, LABELS, variant.name, WEIGHTS_LICENSE)


def _load_folder(name: str, weights: str | os.PathLike[str] | None) -> Checkpoint:
    if weights is not None and (checkpoint := find_checkpoint(_weights.locate(weights))):
        return checkpoint
    with working(f"loading {name}"):
        model = create_model(name, weights=weights)
    labels = labels_or_numbers(model, model.num_classes)
    return Checkpoint(model, spec_of(model), labels, variant_of(model), license_of(model))


def model_files(name: str, weights: str | os.PathLike[str] | None = None) -> list[Path]:
    """The files that `load_model` reads: the weights, then what else says what the model is.

    Raises:
        ValueError, swsl.WeightsError: as `load_model` does.
    """
    if names_model(weights):
        name, weights = str(weights), None
    if not is_folder(name):
        return [find_weights(find_variant(name), weights)]
    folder = read_folder(name)
    return [_weights.locate(weights or folder.weights_file), folder.config_file]


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what `save_checkpoint` wrote. The model is in training mode, as PyTorch has it: call ``.eval()``.

    Raises:
        swsl.WeightsError: no such file, no checkpoint of this package, or damaged.
    """
    path = _weights.locate(path)
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        raise _weights.WeightsError(
            f"weights: {path}: expected a checkpoint that `swsl finetune` wrote, found other weights; of a state dict say which "
            "model it is of: NAME, and --weights FILE"
        )
    return checkpoint


def find_checkpoint(path: Path) -> Checkpoint | None:
    """What `save_checkpoint` wrote to ``path``; None where it holds other weights.

    Raises:
        swsl.WeightsError: a damaged checkpoint, or of a newer format.
    """
    content = _read(path)
    return None if content is None else _rebuild(content, path)


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write it whole or not at all."""
    model = checkpoint.model
    content: dict[str, Any] = {
        "format": _FORMAT,
        "model": {key: value.detach().cpu() for key, value in model.state_dict().items()},
        "architecture": {
            "layers": list(model.layers),
            "groups": model.groups,
            "width_per_group": model.width_per_group,
            "num_classes": model.num_classes,
        },
        "variant": checkpoint.variant,
        "preprocess": asdict(checkpoint.spec),
        "labels": list(checkpoint.labels),
        "license": checkpoint.license,
        "metrics": checkpoint.metrics,
        "versions": {"swsl": __version__, "torch": str(torch.__version__)},
    }
    if checkpoint.training is not None:
        content["training"] = checkpoint.training
    with replacing(path, special=False) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())  # before the rename, or a power cut may leave the name on an empty file


def variant_of(model: ResNeXt) -> str | None:
    """Name of the published variant with this model's architecture, whatever its number of classes."""
    for variant in VARIANTS.values():
        if (variant.layers, variant.groups, variant.width_per_group) == (
            model.layers,
            model.groups,
            model.width_per_group,
        ):
            return variant.name
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint of ours; None for any other file of weights."""
    with open(path, "rb") as file:
        head = file.read(4)
    if head != b"PK\x03\x04":  # the legacy format, as the published files have it, or safetensors
        return None
    content = read_pickled(path, head)
    if not isinstance(content, dict) or not content.keys() >= OWN_KEYS:
        return None
    if content["format"] != _FORMAT:
        raise _weights.WeightsError(
            f"weights: {path}: checkpoint format {content['format']!r}, this swsl reads format {_FORMAT}; "
            "install a newer swsl"
        )
    return content


def _rebuild(content: dict[str, Any], path: Path) -> Checkpoint:
    try:
        model = ResNeXt(**content["architecture"])
        spec = PreprocessSpec(**content["preprocess"])
        labels: Sequence[str] = content["labels"]
        checkpoint = Checkpoint(
            model, spec, tuple(labels), content["variant"], content["license"], content["metrics"],
            content.get("training"),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise _weights.WeightsError(f"weights: {path}: damaged checkpoint ({error!r})") from error
    if len(labels) != model.num_classes:
        raise _weights.WeightsError(
            f"weights: {path}: damaged checkpoint: {len(labels)} labels for {model.num_classes} classes"
        )
    _weights.load_into(model, content["model"], path)
    facts: dict[str, Any] = {"license": checkpoint.license}
    if name := variant_of(model):
        facts["architecture"] = VARIANTS[name].architecture
    # Else it shares the architecture only, or began from other weights of it, as timm's folders may hold.
    if checkpoint.license == WEIGHTS_LICENSE and checkpoint.variant in VARIANTS:
        model.variant = VARIANTS[checkpoint.variant]  # type: ignore[assignment, index]
        facts["tag"] = TIMM_TAG
    own_labels = None if tuple(labels) == LABELS else labels
    set_config(model, timm_config(spec, model.num_classes, own_labels, **facts))
    return checkpoint
