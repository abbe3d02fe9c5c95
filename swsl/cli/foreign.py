"""Networks of timm and torchvision by their names there, with the preprocessing that belongs to their weights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..preprocess import PreprocessSpec
from ..state_dicts import read_state_dict
from ..timm_form import labels_or_numbers, license_of, read_spec
from ..training._torchvision import import_torchvision
from ..weights import WeightsError


class Foreign(NamedTuple):
    """A classifier and what `export_model` wants to know of it."""

    model: nn.Module
    spec: PreprocessSpec
    labels: tuple[str, ...]
    license: str | None


def load_foreign(
    source: str, *, weights: Path | None = None, pretrained: bool = True, test_size: bool = False
) -> Foreign:
    """What ``--from`` names.

    Args:
        source: ``timm:NAME``, or ``torchvision:NAME`` with ``.WEIGHTS`` behind it for others than its default.
        weights: a file of a state dict to load instead of the published one.
        pretrained: whether to load any; else they come from a fixed seed.
        test_size: take timm's size for tests, where it states one, in place of the training's.

    Raises:
        ValueError: no such network, or it cannot be had, or its preprocessing is of a kind that swsl does not have.
        swsl.WeightsError: the file's weights do not fit.
        ImportError: timm or torchvision is not installed.
    """
    library, _, name = source.partition(":")
    kinds: dict[str, Callable[[str, bool], Foreign]] = {
        "timm": partial(_of_timm, test_size=test_size),
        "torchvision": _of_torchvision,
    }
    if library not in kinds or not name:
        raise ValueError(f"--from: expected timm:NAME or torchvision:NAME, got {source!r}")
    if test_size and library != "timm":
        raise ValueError(f"--test-size: timm's networks have one, {source} has not")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = kinds[library](name, pretrained and weights is None)
        for module in found.model.modules():
            # Some begin with branches that are all zeros, which no trained network has.
            if isinstance(module, nn.BatchNorm2d) and module.affine and not pretrained:
                nn.init.uniform_(module.weight, 0.5, 1)
    if weights is not None:
        try:
            found.model.load_state_dict(read_state_dict(weights))
        except RuntimeError as error:
            if isinstance(error, WeightsError):
                raise
            what = " ".join(str(error).split())[:300]
            raise WeightsError(f"weights: {weights} does not fit {source}: {what}") from error
    return found


def _of_timm(name: str, pretrained: bool, test_size: bool) -> Foreign:
    import_torchvision()  # which timm imports
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"--from timm:{name} needs timm: pip install timm ({error})") from error
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    model = _made("timm", name, lambda: timm.create_model(name, pretrained=pretrained))
    spec = _spec(f"timm:{name}", timm.data.resolve_model_data_config(model, use_test_size=test_size))
    labels = labels_or_numbers(model, model.num_classes)
    return Foreign(model, spec, labels, license_of(model) if pretrained else None)


def _of_torchvision(name: str, pretrained: bool) -> Foreign:
    import_torchvision()
    from torchvision import models

    network, _, tag = name.partition(".")
    if network not in models.list_models(module=models):
        raise _unknown("torchvision", network, models.list_models(module=models))
    published = models.get_model_weights(network)
    if tag and tag not in published.__members__:
        raise ValueError(
            f"--from torchvision:{name}: torchvision has no such weights; expected one of {', '.join(published.__members__)}"
        )
    chosen = published[tag or "DEFAULT"]
    model = _made(
        "torchvision", name, lambda: models.get_model(network, weights=chosen if pretrained else None)
    )
    transform = chosen.transforms()
    (crop,), (resized,) = transform.crop_size, transform.resize_size
    config = {
        "input_size": (3, crop, crop), "crop_pct": _crop_pct(crop, resized), "interpolation": transform.interpolation.value,
        "mean": tuple(transform.mean), "std": tuple(transform.std),
    }  # fmt: skip
    spec = _spec(f"torchvision:{name}", config)
    return Foreign(model, spec, tuple(chosen.meta["categories"]), None)


def _made(library: str, name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # whatever a library and a download may raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"--from {library}:{name}: {library} cannot make it: {reason}; without a network, give --weights FILE"
        ) from error


def _unknown(library: str, name: str, known: Iterable[str]) -> ValueError:
    near = difflib.get_close_matches(name, list(known), n=3)
    advice = f"; the nearest: {', '.join(near)}" if near else ""
    return ValueError(f"--from {library}:{name}: {library} has no such network{advice}")


def _spec(source: str, config: dict[str, Any]) -> PreprocessSpec:
    try:
        return read_spec(config)
    except ValueError as error:
        raise ValueError(f"--from {source}: its preprocessing is of another kind: {error}") from error


def _crop_pct(crop: int, resized: int) -> float:
    """The share of which `PreprocessSpec` makes this very size, whatever the rounding."""
    share = crop / resized
    while math.floor(crop / share) < resized:
        share = math.nextafter(share, 0)
    return share
