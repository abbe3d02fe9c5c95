"""A model as a folder of a Triton model repository, for Triton's PyTorch backend.

    config.pbtxt    input and output, dynamic batching; as parameters what a client has to know: ``swsl.preprocess``,
                    ``swsl.license``, ``swsl.fingerprint`` and others, a JSON text each
    labels.txt      class names, one a line, for Triton's classification extension
    1/model.pt      the frozen module, as `swsl.export_model` writes it

The server takes ``INPUT__0``, float32 3×H×W an image, normalised as ``swsl.preprocess`` says, and gives ``OUTPUT__0``, float32
logits. The backend knows tensors by the number in such a name (its README, "Model Configuration").
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..formats.metadata import ModelError, read_metadata
from ..preprocess import PreprocessSpec
from ..system.folders import replacing_folder, resolve_folder
from .export import NO_TORCHSCRIPT, export_model, has_torchscript

CONFIG, LABELS_FILE, MODEL = "config.pbtxt", "labels.txt", "1/model.pt"

_UNFINISHED = 'swsl: "not yet whole"\n'  # a field that the configuration does not have
_SIGN = 'key: "swsl.fingerprint"'
_MAX_BATCH = 32


def export_triton(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    spec: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    license: str | None = None,  # noqa: A002
    weights_sha256: str | None = None,
) -> None:
    """Write a model for Triton Inference Server, checked as `swsl.export_model` checks a frozen module.

    Args:
        model: as `swsl.export_model` takes it. It is not changed.
        folder: ``REPOSITORY/NAME``, where the repository is what Triton's ``--model-repository`` names and NAME is the model's
            for its clients. Both are made where there are none. A folder with files in it must be one that this function wrote: its three files
            are replaced, and others, such as further versions, stay.
        spec: the preprocessing; the model's own by default.
        labels: class names, one a class; by default the model's own, or ImageNet's where there are 1,000. A line break in one is a
            blank in labels.txt.
        license: of the weights; the variant's by default, which also binds what was fine-tuned from it.
        weights_sha256: of the file that the weights came from, where that is known.

    Raises:
        ValueError: as of `swsl.export_model`.
        ModelError: likewise; or there is no TorchScript here.
        OSError: the folder holds something else, or cannot be written.
    """
    target = resolve_triton_folder(folder)
    if not has_torchscript():
        raise ModelError(
            f"{folder}: not written, since Triton's PyTorch backend runs TorchScript, {NO_TORCHSCRIPT}"
        )
    with replacing_folder(target, CONFIG, _UNFINISHED) as whole:
        written = whole / MODEL
        written.parent.mkdir()
        try:
            export_model(
                model, written, spec=spec, labels=labels, license=license, weights_sha256=weights_sha256
            )
        except ModelError as error:
            raise ModelError(str(error).replace(str(written), str(Path(folder, MODEL)))) from error
        metadata = read_metadata(written)
        lines = [re.sub(r"[\r\n]+", " ", label) + "\n" for label in metadata["labels"]]
        (whole / LABELS_FILE).write_text("".join(lines), encoding="utf-8", newline="\n")
        (whole / CONFIG).write_text(_config(metadata), encoding="utf-8", newline="\n")


def resolve_triton_folder(folder: str | os.PathLike[str]) -> Path:
    """Where `export_triton` writes ``folder``, as `swsl.system.folders.resolve_folder` says, but that the repository may be missing."""
    repository, what = Path(folder).parent, "an export for Triton"
    if not repository.is_dir():
        return resolve_folder(repository, what, _is_ours) / Path(folder).name
    return resolve_folder(folder, what, _is_ours)


def _is_ours(folder: Path) -> bool:
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return _SIGN in text or text == _UNFINISHED


def _config(metadata: dict[str, Any]) -> str:
    """In protobuf's text format. It names no model, so that its folder does, and may be renamed; and no instances, so that Triton
    makes one a GPU, or one on the CPU."""
    height, width = metadata["preprocess"]["input_size"]
    lines = [
        'backend: "pytorch"',
        'platform: "pytorch_libtorch"',
        f"max_batch_size: {_MAX_BATCH}",
        f'input {{ name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3, {height}, {width} ] }}',
        f'output {{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ {len(metadata["labels"])} ] label_filename: "{LABELS_FILE}" }}',
        "dynamic_batching { }",
    ]
    for name in ("variant", "preprocess", "license", "weights_sha256", "fingerprint", "versions"):
        # JSON within JSON's own quotes: what it escapes, and how, protobuf reads too.
        value = json.dumps(json.dumps(metadata[name], ensure_ascii=False), ensure_ascii=False)
        lines.append(f'parameters {{ key: "swsl.{name}" value {{ string_value: {value} }} }}')
    return "\n".join(lines) + "\n"
