"""A model as a folder that timm reads, by `timm.create_model("local-dir:FOLDER")` or from the Hugging Face Hub once it is uploaded there.

    model.safetensors   the state dict, float32; timm's names are torchvision's, and so ours
    config.json         architecture, classes, preprocessing and licence as timm writes them; under "swsl" what swsl.json says besides
    README.md           a model card

Classes are named by ``label_names``, but for ImageNet's, which timm knows and names itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..labels import LABELS
from ..preprocess import PreprocessSpec
from ..resnext import ResNeXt
from ..system.folders import replacing_folder, resolve_folder
from ..timm_form import timm_config
from ..variants import PAPER, TIMM_TAG, VARIANTS
from .description import Description, describe

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

_MOST_LISTED = 100  # classes in a model card


def export_timm(
    model: ResNeXt,
    folder: str | os.PathLike[str],
    *,
    spec: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    license: str | None = None,  # noqa: A002
    weights_sha256: str | None = None,
) -> None:
    """Write a folder that timm reads; timm need not be installed.

    Args:
        model: with a classifier; of any class count. It is not changed.
        folder: made where there is none. One with files in it must be one that this function wrote: its three files are replaced.
        spec: the preprocessing; the model's own by default.
        labels: class names, one a class; by default the model's own, or ImageNet's where there are 1,000.
        license: of the weights; the variant's by default, which also binds what was fine-tuned from it.
        weights_sha256: of the file that the weights came from, where that is known.

    Raises:
        ValueError: a model without classifier, or labels that are not one a class.
        ImportError: safetensors is not installed.
        ModelError: weights that are not finite.
        OSError: the folder holds something else, or cannot be written.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(f"{folder}: writing it needs safetensors: pip install safetensors") from error
    target = resolve_timm_folder(folder)
    if not isinstance(model, ResNeXt):
        raise ValueError(
            f"model: expected a ResNeXt of swsl, got {type(model).__name__}, which timm has or does not know"
        )
    found = describe(model, folder, spec, labels, license, weights_sha256)
    with replacing_folder(target, CONFIG, '{"swsl": "not yet whole"}\n') as whole:
        tensors = {name: tensor.contiguous() for name, tensor in found.model.state_dict().items()}
        save_file(tensors, whole / WEIGHTS, metadata={"format": "pt"})
        (whole / CARD).write_text(_card(found), encoding="utf-8")
        config = json.dumps(_config(found), indent=2, ensure_ascii=False) + "\n"
        (whole / CONFIG).write_text(config, encoding="utf-8")


def resolve_timm_folder(folder: str | os.PathLike[str]) -> Path:
    """Where `export_timm` writes ``folder``, as `swsl.system.folders.resolve_folder` says."""
    return resolve_folder(folder, "an export for timm", _is_ours)


def _is_ours(folder: Path) -> bool:
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "swsl" in content


def _architecture(model: ResNeXt) -> tuple[str, dict[str, Any]]:
    """timm's name of a model's architecture, and what its builder has to be told: of another ResNeXt than the four all of it."""
    for variant in VARIANTS.values():
        if (variant.layers, variant.groups, variant.width_per_group) == (
            model.layers,
            model.groups,
            model.width_per_group,
        ):
            return variant.name.removeprefix("swsl_"), {}
    arguments = {
        "layers": list(model.layers),
        "cardinality": model.groups,
        "base_width": model.width_per_group,
    }
    return "resnext50_32x4d", arguments


def _config(found: Description) -> dict[str, Any]:
    model, spec = found.model, found.spec
    assert isinstance(model, ResNeXt)  # which `export_timm` has seen to
    architecture, arguments = _architecture(model)
    fields = found.fields()
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": "avg",
        **({"label_names": list(found.labels)} if found.labels != LABELS else {}),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": timm_config(
            spec,
            model.num_classes,
            **({"tag": TIMM_TAG} if found.published else {}),
            **({"license": found.license.lower()} if found.license else {}),
        ),
    }
    kept = ("variant", "license", "weights_sha256", "fingerprint", "versions")
    config["swsl"] = {name: fields[name] for name in kept}
    return config


def _card(found: Description) -> str:
    spec = found.spec
    title = found.published or f"ResNeXt of {found.model.num_classes} classes"
    licence = "The licence of the weights is not stated."
    if found.license:
        licence = f"The weights are {found.license}"
        licence += ": non-commercial use only." if "-NC-" in found.license else "."
    if found.published:
        origin = f"ImageNet classifier, semi-weakly supervised on a billion images ([paper]({PAPER}))."
    elif found.license:
        origin = "Image classifier, fine-tuned from published weights, whose licence it keeps."
    else:
        origin = "Image classifier."
    names = [" ".join(label.split()).replace("`", "'") for label in found.labels]
    classes = ", ".join(f"`{name}`" for name in names[:_MOST_LISTED])
    if len(names) > _MOST_LISTED:
        classes += f" … and {len(names) - _MOST_LISTED} more"
    names_of_classes = 'names = model.pretrained_cfg["label_names"]'
    if found.labels == LABELS:
        names_of_classes = "names = timm.data.ImageNetInfo().label_descriptions()"
    header = [
        "library_name: timm",
        "pipeline_tag: image-classification",
        "tags:",
        "- image-classification",
        "- timm",
    ]
    if found.license:
        header.insert(0, f"license: {json.dumps(found.license.lower())}")
    lines = [
        "---", *header, "---", f"# {title}", "", origin, licence, "",
        "## Preprocessing", "",
        f"RGB; the shorter side is resized so that the centre crop of {spec.input_size[0]}×{spec.input_size[1]} (height × width) keeps "
        f"{spec.crop_pct:g} of it, with Pillow's antialiased {spec.interpolation} filter; scaled to 0..1, mean {list(spec.mean)}, std "
        f"{list(spec.std)}.", "",
        "## Use", "", "```python", "import timm", "from PIL import Image", "",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or hf-hub:NAME',
        "config = timm.data.resolve_model_data_config(model)",
        "transform = timm.data.create_transform(**config, is_training=False)",
        'logits = model(transform(Image.open("photo.jpg").convert("RGB")).unsqueeze(0))',
        names_of_classes, "```", "",
        f"## Classes ({len(names)})", "", classes, "",
    ]  # fmt: skip
    return "\n".join(lines)
