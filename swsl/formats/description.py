"""What a model is and what belongs to it, as every file that an export writes says it."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..labels import LABELS
from ..preprocess import PreprocessSpec
from ..resnext import ResNeXt
from ..timm_form import labels_of, license_of, spec_of
from ..version import __version__
from .fingerprint import fingerprint
from .metadata import ModelError
from .program import Layers, as_layers


@dataclass(frozen=True)
class Description:
    """A model that is to be written, and what is said about it.

    Args:
        model: a copy in evaluation mode, float32, on the CPU; of a module that is no `ResNeXt` its layers.
        spec: the preprocessing.
        labels: class names, one a class.
        license: of the weights, where it is known.
        published: name of the published variant, if its classes are the published ones too.
        weights_sha256: of the file that the weights came from, where that is known.
        fingerprint: see `swsl.formats.fingerprint.fingerprint`.
    """

    model: ResNeXt | Layers
    spec: PreprocessSpec
    labels: tuple[str, ...]
    license: str | None
    published: str | None
    weights_sha256: str | None
    fingerprint: str

    def fields(self) -> dict[str, Any]:
        """The description as JSON has it, by the names that swsl.json uses."""
        return {
            "variant": self.published,
            "architecture": {
                **{name: getattr(self.model, name, None) for name in ("layers", "groups", "width_per_group")},
                "num_classes": self.model.num_classes,
            },
            "preprocess": asdict(self.spec),
            "labels": list(self.labels),
            "license": self.license,
            "weights_sha256": self.weights_sha256,
            "fingerprint": self.fingerprint,
            "versions": {"swsl": __version__, "torch": str(torch.__version__)},
        }


def describe(
    model: nn.Module,
    path: str | os.PathLike[str],
    spec: PreprocessSpec | None,
    labels: Sequence[str] | None,
    license: str | None,  # noqa: A002
    weights_sha256: str | None,
) -> Description:
    """The description of a model that is to be written to ``path``; the arguments are those of `swsl.export_model`.

    Raises:
        ValueError: a model without classifier, or labels that are not one a class.
        ModelError: weights that are not finite, or an operator that no engine has.
    """
    model = getattr(model, "_orig_mod", model)  # of what torch.compile made
    if getattr(model, "num_classes", None) == 0:
        raise ValueError(
            "model: expected a classifier, got num_classes=0; call model.reset_classifier(n) and train it"
        )
    own = isinstance(model, ResNeXt)
    if spec is None and not (own or hasattr(model, "pretrained_cfg")):
        raise ValueError(
            f"spec: expected a PreprocessSpec, since {type(model).__name__} does not say how its images are prepared"
        )
    spec = spec or spec_of(model)
    eager = copy.deepcopy(model).cpu().float().eval()
    broken = [name for name, tensor in eager.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise ModelError(
            f"{path}: not written, since {len(broken)} tensors of the model hold NaN or infinity ({', '.join(broken[:3])}"
            f"{', …' * (len(broken) > 3)}); export a checkpoint from before the training diverged"
        )
    network = eager if isinstance(eager, ResNeXt) else as_layers(eager, spec.input_size, os.fsdecode(path))
    if labels is None:
        labels = labels_of(model, network.num_classes)
    if labels is None or len(labels) != network.num_classes:
        raise ValueError(
            f"labels: expected {network.num_classes}, one a class, got {'none' if labels is None else len(labels)}"
        )
    variant = getattr(model, "variant", None) if own else None
    return Description(
        model=network,
        spec=spec,
        labels=tuple(labels),
        license=license or license_of(model),
        published=variant.name if variant and tuple(labels) == LABELS else None,
        weights_sha256=weights_sha256,
        fingerprint=fingerprint(eager, spec, labels),
    )
