"""Freeze a model into one self-describing TorchScript file.

The file is plain TorchScript: `torch::jit::load` runs it in any LibTorch program. Its methods are ``forward`` (float32
N×3×H×W → logits N×classes) and ``embed`` (→ pooled features N×2048), with BatchNorm folded into the convolutions. The
extra file ``swsl.json`` inside says everything else that deployment needs; `Metadata` in cpp/include/swsl/frozen_model.h
reads it.
"""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .fingerprint import fingerprint
from .labels import LABELS
from .output import replacing
from .preprocess import PreprocessSpec
from .resnext import ResNeXt
from .version import __version__

FORMAT = 2
METADATA_FILE = "swsl.json"

TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}
"""How far logits may be from eager float32 (see `relative_error`), by the dtype computed in. Every frozen module carries
these numbers, and both languages read them from there."""


class ModelError(RuntimeError):
    """A frozen module that cannot be read, written or trusted. The message names the file and says what to do."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest magnitude expected; infinite where shapes differ or a value is not finite."""
    if actual.shape != expected.shape or not (actual.isfinite().all() and expected.isfinite().all()):
        return math.inf
    scale = expected.double().abs().max()
    return (
        ((actual.double().cpu() - expected.double().cpu()).abs().max() / scale).item()
        if scale > 0
        else math.inf
    )


def golden_input(shape: Sequence[int]) -> Tensor:
    """The deterministic float32 input of golden checks: in uint32 arithmetic, element i of the flat tensor is
    ``((i * 2654435761 >> 24) - 128) / 64``. Every value is exact, so any language computes the same."""
    index = torch.arange(math.prod(shape), dtype=torch.int64)
    return (((index * 2654435761 & 0xFFFFFFFF) >> 24) - 128).to(torch.float32).div_(64).view(*shape)


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
    golden = golden_input((1, 3, *spec.input_size))
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
            "logits": eager(golden)[0].tolist(),
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
        features = eager.forward_head(eager.forward_features(batch), pre_logits=True)
        for method, expected in ((frozen.forward, eager(batch)), (frozen.embed, features)):
            error = relative_error(method(batch), expected)
            if not error <= TOLERANCES["float32"]:
                raise ModelError(
                    f"{name}: not written, since the frozen module's answer for {shape} is {error:.1e} from eager PyTorch's, "
                    f"expected at most {TOLERANCES['float32']:.0e}; are all weights finite?"
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


def verify(path: str | os.PathLike[str]) -> float:
    """Repeat a frozen module's golden check in TorchScript on the CPU.

    Returns:
        The relative error of its logits.

    Raises:
        ModelError: the file is damaged, or the error is above the float32 tolerance that it states.
    """
    golden = read_metadata(path)["golden"]
    try:
        frozen = torch.jit.load(os.fspath(path), map_location="cpu")
    except RuntimeError as error:
        raise ModelError(f"{path}: cannot be loaded: {str(error).splitlines()[0]}") from error
    with torch.inference_mode():
        logits = frozen(golden_input(golden["shape"]))[0]
    error_found = relative_error(logits, torch.tensor(golden["logits"]))
    tolerance = golden["tolerances"]["float32"]
    if not error_found <= tolerance:
        raise ModelError(
            f"{path}: its logits are {error_found:.1e} from those recorded at export, expected at most {tolerance:.0e}; "
            "export it again"
        )
    return error_found


def cached_export(name: str, weights: str | os.PathLike[str] | None = None) -> Path:
    """The frozen module of a variant: frozen once for these weights, then reused from torch.hub's cache.

    Raises:
        swsl.WeightsError: the weights cannot be had or do not fit.
    """
    from .checkpoint import load_model
    from .variants import find_variant, find_weights
    from .weights import file_sha256

    source = find_weights(find_variant(name), weights)
    digest = file_sha256(source)
    folder = Path(torch.hub.get_dir(), "swsl")
    path = folder / f"{name}-{digest[:16]}-format{FORMAT}-swsl{__version__}-torch{torch.__version__}.pt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        loaded = load_model(name, source)
        export_model(
            loaded.model,
            path,
            spec=loaded.spec,
            labels=loaded.labels,
            license=loaded.license,
            weights_sha256=digest,
        )
    return path
