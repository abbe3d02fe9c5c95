"""Freeze a model into one self-describing TorchScript file.

The file is plain TorchScript: `torch::jit::load` runs it in any LibTorch program. Its methods are ``forward`` (float32
N×3×H×W → logits N×classes) and ``embed`` (→ pooled features N×2048), with BatchNorm folded into the convolutions. The
extra file ``swsl.json`` inside says everything else that deployment needs; `Metadata` in cpp/include/swsl/frozen_model.h
reads it.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..labels import LABELS
from ..preprocess import PreprocessSpec
from ..resnext import ResNeXt
from ..system.files import replacing
from ..version import __version__
from .fingerprint import fingerprint
from .golden import (
    TOLERANCES,
    classifier_sizes,
    golden_input,
    logits_error,
    logits_scale,
    output_error,
    relative_error,
)

FORMAT = 2
METADATA_FILE = "swsl.json"


class ModelError(RuntimeError):
    """A frozen module that cannot be read, written or trusted. The message names the file and says what to do."""


class _AveragePool(nn.Module):
    """nn.AdaptiveAvgPool2d without its check of arguments, whose branch would stand between engines and a plain graph."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.adaptive_avg_pool2d(x, [1, 1])


class _Deployed(nn.Module):
    def __init__(self, model: ResNeXt) -> None:
        super().__init__()
        self.model = model
        self.model.avgpool = _AveragePool()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    @torch.jit.export
    def embed(self, x: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)


def _fold_batch_norms(model: ResNeXt) -> ResNeXt:
    """A copy without BatchNorm. Folded here rather than by freezing, so that both methods share one copy of the weights."""
    folded = copy.deepcopy(model).cpu().float().eval()
    for parent in list(folded.modules()):
        children = dict(parent.named_children())
        for name, child in children.items():
            if isinstance(child, nn.BatchNorm2d):
                before = name.replace("bn", "conv") if name.startswith("bn") else str(int(name) - 1)
                convolution = children[before]
                assert isinstance(convolution, nn.Conv2d)
                fused = torch.nn.utils.fusion.fuse_conv_bn_eval(convolution, child)
                setattr(parent, before, fused)
                setattr(parent, name, nn.Identity())
    return folded


@torch.inference_mode(False)
@torch.no_grad()
def export_model(
    model: ResNeXt,
    path: str | os.PathLike[str],
    *,
    spec: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    license: str | None = None,  # noqa: A002
    weights_sha256: str | None = None,
) -> None:
    """Write a frozen module, reload it, compare it with ``model`` in eager mode, and only then give it its name.

    Args:
        model: with a classifier; of any class count. Neither its weights nor its mode are changed.
        path: the file to write, ``.pt`` by custom.
        spec: the preprocessing; the variant's by default.
        labels: class names, one a class; ImageNet's by default where there are 1,000.
        license: of the weights; the variant's by default, which also binds what was fine-tuned from it.
        weights_sha256: of the file that the weights came from, where that is known.

    Raises:
        ValueError: a model without classifier, or labels that are not one a class.
        ModelError: the written module does not compute what the model does.
        OSError: the file cannot be written.
    """
    if not model.num_classes:
        raise ValueError(
            "model: expected a classifier, got num_classes=0; call model.reset_classifier(n) and train it"
        )
    variant = getattr(model, "variant", None)
    spec = spec or (variant.preprocess if variant else PreprocessSpec())
    if labels is None and model.num_classes == len(LABELS):
        labels = LABELS
    if labels is None or len(labels) != model.num_classes:
        raise ValueError(
            f"labels: expected {model.num_classes}, one a class, got {'none' if labels is None else len(labels)}"
        )

    eager = copy.deepcopy(model).cpu().float().eval()
    broken = [name for name, tensor in eager.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise ModelError(
            f"{path}: not written, since {len(broken)} tensors of the model hold NaN or infinity ({', '.join(broken[:3])}"
            f"{', …' * (len(broken) > 3)}); export a checkpoint from before the training diverged"
        )
    golden = golden_input((1, 3, *spec.input_size))
    features = eager.forward_head(eager.forward_features(golden), pre_logits=True)
    weight_norms, biases = classifier_sizes(eager)
    metadata = {
        "format": FORMAT,
        "variant": variant.name if variant and tuple(labels) == LABELS else None,
        "architecture": {
            "layers": model.layers,
            "groups": model.groups,
            "width_per_group": model.width_per_group,
            "num_classes": model.num_classes,
        },
        "preprocess": asdict(spec),
        "labels": list(labels),
        "license": license or (variant.license if variant else None),
        "weights_sha256": weights_sha256,
        "fingerprint": fingerprint(eager, spec, labels),
        "versions": {"swsl": __version__, "torch": torch.__version__},
        "golden": {
            "shape": list(golden.shape),
            "features": features[0].tolist(),
            "logits": eager.fc(features)[0].tolist(),
            "weight_norms": weight_norms,
            "biases": biases,
            "tolerances": TOLERANCES,
        },
    }
    with warnings.catch_warnings():
        # TorchScript is what LibTorch loads without Python, so its deprecation is accepted knowingly.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.jit")
        scripted = torch.jit.script(_Deployed(_fold_batch_norms(model)).eval())
        frozen = torch.jit.freeze(scripted, preserved_attrs=["embed"])
        with replacing(path, special=False) as temporary:
            torch.jit.save(frozen, str(temporary), _extra_files={METADATA_FILE: json.dumps(metadata)})
            _compare(temporary, eager, spec, str(path))


def _compare(written: Path, eager: ResNeXt, spec: PreprocessSpec, name: str) -> None:
    frozen = torch.jit.load(str(written), map_location="cpu")
    height, width = spec.input_size
    for shape in ((1, 3, height, width), (2, 3, height + 32, width)):
        batch = golden_input(shape)
        logits, features = frozen(batch), frozen.embed(batch)
        error = output_error(eager, batch, logits=logits, features=features)
        if not error <= TOLERANCES["float32"]:
            finite = bool(logits.isfinite().all() and features.isfinite().all())
            raise ModelError(
                f"{name}: not written, since the frozen module's answers to an input of {shape} are "
                + (
                    f"{error:.1e} from eager PyTorch's, expected at most {TOLERANCES['float32']:.0e}; "
                    f"torch {torch.__version__} freezes this model wrongly: try another release"
                    if finite
                    else "not finite; the weights are too large for float32 activations: scale them down"
                )
            )


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a frozen module says about itself, without loading its weights.

    Raises:
        ModelError: no such file, no frozen module of ours, or one of a newer format.
    """
    if not os.path.isfile(path):
        found = "is a directory" if os.path.isdir(path) else "no such file"
        raise ModelError(f"{path}: {found}; expected a frozen module, as `swsl export` writes")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/extra/{METADATA_FILE}")]
            metadata = json.loads(archive.read(names[0])) if names else None
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise ModelError(f"{path}: not a TorchScript archive, or damaged ({error})") from error
    if not isinstance(metadata, dict):
        raise ModelError(f"{path}: no {METADATA_FILE} inside; expected a module that `swsl export` wrote")
    if metadata.get("format") != FORMAT:
        raise ModelError(
            f"{path}: is of format {metadata.get('format')!r}, this version of swsl reads format {FORMAT}; export it again"
        )
    return metadata


def made_anew(kind: Any, path: str, options: dict[str, Any], fingerprint: str) -> Any:
    """A runner of a frozen module where a pickle of it arrives: ``kind(path, **options)``.

    Raises:
        ModelError: the file holds another model than the one of this fingerprint.
    """
    runner = kind(path, **options)
    if runner.fingerprint != fingerprint:
        raise ModelError(
            f"{path}: holds another model than when its runner was pickled or copied (fingerprint "
            f"{runner.fingerprint[:16]}…, expected {fingerprint[:16]}…); put the file back, or make a new runner"
        )
    return runner


def verify(path: str | os.PathLike[str]) -> float:
    """Repeat a frozen module's golden check in TorchScript on the CPU.

    Returns:
        The larger of the errors of its features and logits, as `swsl.deploy.golden` defines them.

    Raises:
        ModelError: the file is damaged, or the error is above the float32 tolerance that it states.
    """
    golden = read_metadata(path)["golden"]
    try:
        frozen = torch.jit.load(os.fspath(path), map_location="cpu")
    except RuntimeError as error:
        raise ModelError(f"{path}: cannot be loaded: {str(error).splitlines()[0]}") from error
    batch = golden_input(golden["shape"])
    with torch.inference_mode():
        logits, features = frozen(batch), frozen.embed(batch)
    expected = torch.tensor([golden["features"]])
    scale = logits_scale(golden["weight_norms"], golden["biases"], expected)
    errors = {
        "features": relative_error(features, expected),
        "logits": logits_error(logits, torch.tensor([golden["logits"]]), scale),
    }
    tolerance = golden["tolerances"]["float32"]
    for what, found in errors.items():
        if not found <= tolerance:
            raise ModelError(
                f"{path}: its {what} are {found:.1e} from those recorded at export, expected at most {tolerance:.0e}; "
                "export it again"
            )
    return max(errors.values())
