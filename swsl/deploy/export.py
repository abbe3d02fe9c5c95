"""Freeze a model into one self-describing file, which any PyTorch runs without this package.

By the file's name, ``.pt2`` is torch.export's archive of a program that takes float32 N×3×H×W to logits N×classes and pooled
features N×D; anything else, ``.pt`` by custom, is TorchScript with the methods ``forward`` (→ logits) and ``embed`` (→
features), for `torch::jit::load` in any LibTorch program. BatchNorm is folded into the convolutions. The extra file
``swsl.json`` inside says everything else that deployment needs, and lists the operators and where the archive has their
weights (the network table), so that the C++ core needs neither. Both ways of running the file are checked.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..formats import program
from ..formats.description import describe
from ..formats.golden import (
    TOLERANCES,
    classifier_sizes,
    golden_input,
    logits_error,
    logits_scale,
    output_error,
    relative_error,
)
from ..formats.metadata import (
    FORMAT,
    LARGEST_INPUT,
    METADATA_FILE,
    OPERATORS,
    ModelError,
    has_script,
    open_frozen,
    read_metadata,
)
from ..formats.network_table import (
    NetworkTable,
    check_classifier,
    make_table,
    run_table,
    trace,
    unknown_operators,
)
from ..preprocess import PreprocessSpec
from ..resnext import ResNeXt
from ..system.files import replacing

NO_TORCHSCRIPT = (
    f"which torch {torch.__version__} on Python {sys.version_info.major}.{sys.version_info.minor} does not have; use Python 3.13 "
    "or older and a torch that has torch.jit.script"
)
"""Why something that needs TorchScript cannot be done here, to follow that name in an error."""
PROGRAM_SUFFIX = ".pt2"
"""Of the files that hold a program of torch.export."""


def has_torchscript() -> bool:
    """Whether PyTorch can write and run TorchScript here."""
    return sys.version_info < (3, 14) and hasattr(getattr(torch, "jit", None), "script")


def default_suffix() -> str:
    """Of a frozen module that is to run here, whatever is here."""
    return ".pt" if has_torchscript() else PROGRAM_SUFFIX


def load_torchscript(path: str | os.PathLike[str], device: str | torch.device) -> Any:
    """The ScriptModule in a frozen module, with its methods ``forward`` and ``embed``.

    Raises:
        ModelError: PyTorch cannot load it.
    """
    if not has_torchscript():
        raise ModelError(f"{path}: running it in PyTorch needs TorchScript, {NO_TORCHSCRIPT}, or swsl.Runner")
    try:
        return torch.jit.load(os.fspath(path), map_location=device)
    except RuntimeError as error:
        raise ModelError(f"{path}: cannot be loaded: {str(error).splitlines()[0]}") from error


class _AveragePool(nn.Module):
    """nn.AdaptiveAvgPool2d without its check of arguments, whose branch would stand between engines and a plain graph."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.adaptive_avg_pool2d(x, [1, 1])


def _frozen(folded: nn.Module) -> Any:
    """TorchScript with the methods ``forward`` and ``embed``."""

    class Deployed(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model: Any = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

        @torch.jit.export
        def embed(self, x: Tensor) -> Tensor:
            return self.model.forward_head(self.model.forward_features(x), pre_logits=True)

    for name, module in list(folded.named_modules()):
        if isinstance(module, nn.AdaptiveAvgPool2d):
            folded.set_submodule(name, _AveragePool())
    return torch.jit.freeze(torch.jit.script(Deployed(folded).eval()), preserved_attrs=["embed"])


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
    for parameter in folded.parameters():  # the archive has to hold them as the network table says
        parameter.data = program.as_stored(parameter.data)
    return folded


@torch.inference_mode(False)
@torch.no_grad()
def export_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    spec: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    license: str | None = None,  # noqa: A002
    weights_sha256: str | None = None,
) -> None:
    """Write a frozen module, reload it, compare it with ``model`` in eager mode, and only then give it its name.

    Args:
        model: a `ResNeXt` with a classifier, of any class count; or any module that takes images N×3×H×W to logits by operators
            that the network table has, timm's and torchvision's ResNets and ResNeXts say. Neither its weights nor its mode are
            changed.
        path: the file to write: torch.export's archive if it ends in ``.pt2``, else TorchScript, ``.pt`` by custom.
        spec: the preprocessing; the model's own by default, which timm's models carry too.
        labels: class names, one a class; by default the model's own, or ImageNet's where there are 1,000.
        license: of the weights; the variant's by default, which also binds what was fine-tuned from it.
        weights_sha256: of the file that the weights came from, where that is known.

    Raises:
        ValueError: a model without classifier, labels that are not one a class, or an input of more than 1,024 pixels a side.
        ModelError: the written module does not compute what the model does; the model has an operator that no engine has, which
            in a ``.pt`` is only LibTorch's business if it is a `ResNeXt`; or there is no TorchScript here, which a ``.pt`` needs.
        OSError: the file cannot be written.
    """
    name = os.fsdecode(path)
    as_program = Path(name).suffix.lower() == PROGRAM_SUFFIX
    if as_program and torch.torch_version.TorchVersion(torch.__version__) < "2.9":
        raise ModelError(
            f"{path}: not written, since a .pt2 needs torch 2.9, whose archive has each weight as it is, and here is "
            f"{torch.__version__}; name a .pt file"
        )
    if not (as_program or has_torchscript()):
        raise ModelError(
            f"{path}: not written, since a .pt needs TorchScript, {NO_TORCHSCRIPT}; or name a .pt2 file, which needs none"
        )
    found = describe(model, path, spec, labels, license, weights_sha256)
    eager, spec = found.model, found.spec
    if max(spec.input_size) > LARGEST_INPUT:
        raise ValueError(
            f"spec: expected an input_size of at most {LARGEST_INPUT} pixels a side, got {spec.input_size}"
        )
    golden = golden_input((1, 3, *spec.input_size))
    features = eager.forward_head(eager.forward_features(golden), pre_logits=True)
    logits = eager.fc(features)
    if not (features.isfinite().all() and logits.isfinite().all()):
        raise ModelError(
            f"{path}: not written, since the model's answers are not finite; the weights are too large for float32 "
            "activations: scale them down"
        )
    weight_norms, biases = classifier_sizes(eager)
    metadata = {
        "format": FORMAT,
        **found.fields(),
        "golden": {
            "shape": list(golden.shape),
            "features": features[0].tolist(),
            "logits": logits[0].tolist(),
            "weight_norms": weight_norms,
            "biases": biases,
            "tolerances": TOLERANCES,
        },
    }
    with warnings.catch_warnings(), replacing(path, special=False) as temporary:
        # TorchScript is what LibTorch loads without Python, so its deprecation is accepted knowingly.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.jit")
        folded = _fold_batch_norms(eager) if isinstance(eager, ResNeXt) else copy.deepcopy(eager)
        # PyTorch names the archive's folder after the file that it writes.
        with tempfile.TemporaryDirectory(dir=temporary.parent, prefix=f"{temporary.name}.") as folder:
            stem = _archive_name(found.published or Path(path).stem)
            written = Path(folder, f"{stem}{PROGRAM_SUFFIX if as_program else '.pt'}")
            _write(folded, metadata, written, name)
            _compare(written, eager, spec, name)
            os.replace(written, temporary)


def _archive_name(name: str) -> str:
    return re.sub(r"[^\w +-.]", "_", name).strip(". ")[:100] or "model"


def _write(folded: nn.Module, metadata: dict[str, Any], written: Path, name: str) -> None:
    traced, size = trace(folded, name), tuple(metadata["preprocess"]["input_size"])
    save: Callable[[dict[str, str]], None]
    if written.suffix == PROGRAM_SUFFIX:
        save = partial(program.save, program.answers(folded, size, name), written)
    else:
        frozen = _frozen(folded)
        save = lambda extra: torch.jit.save(frozen, str(written), _extra_files=extra)  # noqa: E731
    save({})  # which shows where the weights lie
    table = make_table(traced, written, name)
    unknown = unknown_operators(table)
    if unknown and (written.suffix == PROGRAM_SUFFIX or not isinstance(folded, ResNeXt)):
        raise ModelError(
            f"{name}: not written, since the model computes {unknown[0]}, which swsl's engines do not have; they have "
            f"{', '.join(OPERATORS)}"
        )
    save({METADATA_FILE: json.dumps({**metadata, "network": table})})


def _compare(written: Path, eager: Any, spec: PreprocessSpec, name: str) -> None:
    """Both ways of running the file against eager PyTorch; it is also seen that the table still fits the archive."""
    try:
        table = read_metadata(written)["network"]
    except ModelError as error:
        reason = str(error).removeprefix(f"{written}: ")
        raise ModelError(f"{name}: not written, since it could not be read again: {reason}") from error
    ways: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {}
    if written.suffix == PROGRAM_SUFFIX:
        # Which unpickles and evaluates what a file says: right for one just written, and for none from elsewhere.
        ways["program"] = torch.export.load(written).module()
    else:
        frozen = torch.jit.load(str(written), map_location="cpu")
        ways["frozen module"] = lambda batch: (frozen(batch), frozen.embed(batch))
    if not unknown_operators(table):
        ways["network table"] = NetworkTable(written)
    height, width = spec.input_size
    other = (
        height + 32 if written.suffix != PROGRAM_SUFFIX or program.takes_any_size(spec.input_size) else height
    )
    for shape in ((1, 3, height, width), (2, 3, other, width)):
        batch = golden_input(shape)
        for way, run in ways.items():
            logits, features = run(batch)
            found = output_error(eager, batch, logits=logits, features=features)
            if not found <= TOLERANCES["float32"]:
                raise ModelError(
                    f"{name}: not written, since the {way}'s answers to an input of {shape} are {found:.1e} from eager "
                    f"PyTorch's, expected at most {TOLERANCES['float32']:.0e}; torch {torch.__version__} freezes this model "
                    "wrongly: try another release"
                )


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
    """Repeat a frozen module's golden check on the CPU by its network table, and of a ``.pt`` in TorchScript too, where PyTorch has
    that. torch.export would run whatever code a ``.pt2`` from elsewhere holds, so the program in it is only checked at export.

    Returns:
        The largest of the errors of its features and logits, as `swsl.formats.golden` defines them.

    Raises:
        ModelError: the file is damaged, an error is above the float32 tolerance that it states, or nothing here can run it.
    """
    metadata, archive = open_frozen(path)
    golden = metadata["golden"]
    batch = golden_input(golden["shape"])
    check_classifier(path)
    outputs = {}
    script = has_script(archive) and has_torchscript()
    if not (script and unknown_operators(metadata["network"])):
        outputs["by its network table"] = run_table(path, batch)
    if script:
        frozen = load_torchscript(path, "cpu")
        try:
            with torch.inference_mode():
                outputs["in TorchScript"] = frozen(batch), frozen.embed(batch)
        except RuntimeError as error:
            raise ModelError(f"{path}: does not run in TorchScript: {str(error).splitlines()[-1]}") from error
    expected = torch.tensor([golden["features"]])
    scale = logits_scale(golden["weight_norms"], golden["biases"], expected)
    tolerance = golden["tolerances"]["float32"]
    largest = 0.0
    for way, (logits, features) in outputs.items():
        errors = {
            "features": relative_error(features, expected),
            "logits": logits_error(logits, torch.tensor([golden["logits"]]), scale),
        }
        for what, found in errors.items():
            if not found <= tolerance:
                raise ModelError(
                    f"{path}: its {what} are {found:.1e} from those recorded at export when run {way}, expected at most "
                    f"{tolerance:.0e}; export it again"
                )
        largest = max(largest, *errors.values())
    return largest
