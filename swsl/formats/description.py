"""What a model is and what belongs to it, as every file that an export writes says it."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..labels import LABELS
from ..preprocess import PreprocessSpec
from ..resnext import ResNeXt
from ..timm_form import labels_of, spec_of
from ..version import __version__
from .fingerprint import fingerprint
from .metadata import ModelError


@dataclass(frozen=True)
class Description:
    """A model that is to be written, and what is said about it.

    Args:
        model: a copy in evaluation mode, float32, on the CPU.
        spec: the preprocessing.
        labels: class names, one a class.
        license: of the weights, where it is known.
        published: name of the published variant, if its classes are the published ones too.
        weights_sha256: of the file that the weights came from, where that is known.
    """

    model: ResNeXt
    spec: PreprocessSpec
    labels: tuple[str, ...]
    license: str | None
    published: str | None
    weights_sha256: str | None

    def fields(self) -> dict[str, Any]:
        """The description as JSON has it, by the names that swsl.json uses."""
        return {
            "variant": self.published,
            "architecture": {
                "layers": self.model.layers,
                "groups": self.model.groups,
                "width_per_group": self.model.width_per_group,
                "num_classes": self.model.num_classes,
            },
            "preprocess": asdict(self.spec),
            "labels": list(self.labels),
            "license": self.license,
            "weights_sha256": self.weights_sha256,
            "fingerprint": fingerprint(self.model, self.spec, self.labels),
            "versions": {"swsl": __version__, "torch": str(torch.__version__)},
        }


def describe(
    model: ResNeXt,
    path: str | os.PathLike[str],
    spec: PreprocessSpec | None,
    labels: Sequence[str] | None,
    license: str | None,  # noqa: A002
    weights_sha256: str | None,
) -> Description:
    """The description of a model that is to be written to ``path``; the arguments are those of `swsl.export_model`.

    Raises:
        ValueError: a model without classifier, or labels that are not one a class.
        ModelError: weights that are not finite.
    """
    if not model.num_classes:
        raise ValueError(
            "model: expected a classifier, got num_classes=0; call model.reset_classifier(n) and train it"
        )
    if labels is None:
        labels = labels_of(model)
    if labels is None or len(labels) != model.num_classes:
        raise ValueError(
            f"labels: expected {model.num_classes}, one a class, got {'none' if labels is None else len(labels)}"
        )
    variant = getattr(model, "variant", None)
    eager = copy.deepcopy(model).cpu().float().eval()
    broken = [name for name, tensor in eager.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise ModelError(
            f"{path}: not written, since {len(broken)} tensors of the model hold NaN or infinity ({', '.join(broken[:3])}"
            f"{', …' * (len(broken) > 3)}); export a checkpoint from before the training diverged"
        )
    return Description(
        model=eager,
        spec=spec or spec_of(model),
        labels=tuple(labels),
        license=license or (variant.license if variant else None),
        published=variant.name if variant and tuple(labels) == LABELS else None,
        weights_sha256=weights_sha256,
    )
