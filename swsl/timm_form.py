"""Models as timm describes them: the configuration that its functions read off a model, and folders of a configuration and weights,
on this machine or on the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from .preprocess import PreprocessSpec
from .resnext import ResNeXt
from .weights import WeightsError

_WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm writes them, the first preferred
_CONTENTS = f"config.json beside {' or '.join(_WEIGHTS_FILES)}"
_INTERPOLATION = "bicubic"  # timm's, where a configuration says nothing
# What `ResNet` of timm takes that makes no other network of it, once it is trained.
_TRAINING_ARGS = frozenset({"drop_rate", "drop_path_rate", "drop_block_rate"})


def timm_config(
    spec: PreprocessSpec, num_classes: int, labels: Sequence[str] | None = None, **facts: Any
) -> dict[str, Any]:
    """What timm calls a ``pretrained_cfg``.

    Args:
        spec: of the images.
        num_classes: of the classifier.
        labels: class names, where they are not ImageNet's.
        facts: other entries: ``architecture``, ``tag``, ``license``, …
    """
    height, width = spec.input_size
    config = {
        "input_size": (3, height, width),
        "fixed_input_size": False,
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct,
        "crop_mode": "center",
        "mean": spec.mean,
        "std": spec.std,
        "num_classes": num_classes,
        "pool_size": (-(-height // 32), -(-width // 32)),
        "first_conv": "conv1",
        "classifier": "fc",
        "custom_load": False,
        **facts,
    }
    if labels is not None:
        config["label_names"] = tuple(labels)
    return config


def read_spec(config: dict[str, Any]) -> PreprocessSpec:
    """The preprocessing that a ``pretrained_cfg`` asks for, with timm's defaults where it says nothing.

    Raises:
        ValueError: one that is not ours: another number of channels, a crop other than the centre's, another filter.
    """
    size = config.get("input_size") or (3, 224, 224)
    if not isinstance(size, (list, tuple)) or len(size) != 3 or size[0] != 3:
        raise ValueError(f"input_size: expected 3 channels, a height and a width, got {size!r}")
    if (mode := config.get("crop_mode") or "center") != "center":
        raise ValueError(f"crop_mode: expected 'center', got {mode!r}")
    given = {name: config[name] for name in ("crop_pct", "mean", "std") if config.get(name)}
    return PreprocessSpec(
        tuple(size[1:]), interpolation=config.get("interpolation") or _INTERPOLATION, **given
    )


def set_config(model: ResNeXt, config: dict[str, Any]) -> None:
    """Make it the model's, under both names that timm's functions know."""
    model.pretrained_cfg = model.default_cfg = config


def spec_of(model: nn.Module) -> PreprocessSpec:
    """A model's own preprocessing, as ours and timm's carry it; the published models' where it carries none.

    Raises:
        ValueError: it is of a kind that is not ours.
    """
    config = getattr(model, "pretrained_cfg", None)
    return read_spec(config) if config else PreprocessSpec()


def labels_of(model: nn.Module, num_classes: int) -> tuple[str, ...] | None:
    """A model's own class names, or ImageNet's where it has 1,000 classes; None for other classes that it does not name."""
    from .labels import LABELS

    own: tuple[str, ...] | None = getattr(model, "pretrained_cfg", {}).get("label_names")
    return own or (LABELS if num_classes == len(LABELS) else None)


def labels_or_numbers(model: nn.Module, num_classes: int) -> tuple[str, ...]:
    """A model's class names, or the numbers of the classes that it does not name."""
    return labels_of(model, num_classes) or tuple(map(str, range(num_classes)))


def license_of(model: nn.Module) -> str | None:
    """Of a model's weights, where it says so: those of Creative Commons as SPDX writes them, which timm has in small letters."""
    variant = getattr(model, "variant", None)
    stated: str | None = getattr(variant, "license", None) or getattr(model, "pretrained_cfg", {}).get(
        "license"
    )
    return stated.upper() if stated and stated.lower().startswith("cc-") else stated


@dataclass(frozen=True)
class TimmFolder:
    """A model in timm's form.

    Args:
        source: what the user called it.
        config_file: on this machine.
        find_weights: to the file of the weights on this machine, which of the Hub's is downloaded only then.
        architecture: timm's name of it.
        layers, groups, width_per_group: where they are other than that name's.
        config: its ``pretrained_cfg``.
        spec, num_classes, labels: what that says; no labels where it names none.
    """

    source: str
    config_file: Path
    find_weights: Callable[[], Path]
    architecture: str
    layers: tuple[int, ...] | None
    groups: int | None
    width_per_group: int | None
    config: dict[str, Any]
    spec: PreprocessSpec
    num_classes: int
    labels: tuple[str, ...] | None

    @cached_property
    def weights_file(self) -> Path:
        return self.find_weights()


def is_folder(source: object) -> bool:
    """Whether it is one of timm's names for a folder: ``local-dir:FOLDER``, ``hf-hub:OWNER/NAME`` or ``hf-hub:OWNER/NAME@REVISION``."""
    return isinstance(source, str) and re.match(r"local-dir:|hf[-_]hub:", source) is not None


def read_folder(source: str) -> TimmFolder:
    """Read the configuration in a folder, which is downloaded to huggingface_hub's cache where it is on the Hub.

    Raises:
        swsl.WeightsError: there is no such folder, huggingface_hub is not installed or cannot download it, a file is missing or
            damaged, or it describes what is no ResNeXt of ours.
    """
    kind, _, place = source.partition(":")
    if not place:
        raise WeightsError(f"weights: {source}: expected local-dir:FOLDER or hf-hub:OWNER/NAME")
    find = _find_local if kind == "local-dir" else _find_on_hub
    config_file, find_weights = find(source, place)
    try:
        content = json.loads(config_file.read_text("utf-8"))
        return _parse(source, config_file, find_weights, content)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"weights: {source}: {config_file}: {error or type(error).__name__}") from error


def _find_local(source: str, place: str) -> tuple[Path, Callable[[], Path]]:
    folder = Path(place).expanduser()
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such folder"
        raise WeightsError(f"weights: {source}: {found}; expected a folder with {_CONTENTS}")
    for name in _WEIGHTS_FILES:
        if (folder / name).is_file() and (folder / "config.json").is_file():
            return folder / "config.json", (folder / name).absolute
    found = ", ".join(sorted(os.listdir(folder))[:5]) or "nothing"
    raise WeightsError(f"weights: {source}: expected {_CONTENTS}, found {found}")


def _find_on_hub(source: str, place: str) -> tuple[Path, Callable[[], Path]]:
    repository, _, revision = place.partition("@")
    config_file = _download(source, repository, ("config.json",), revision)
    # Of the same commit, whatever is pushed meanwhile.
    return config_file, partial(_download, source, repository, _WEIGHTS_FILES, config_file.parent.name)


def _download(source: str, repository: str, names: Sequence[str], revision: str) -> Path:
    """The first of these files that the repository has."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise WeightsError(
            f"weights: {source}: needs huggingface_hub: pip install huggingface_hub safetensors; or fetch its files by other "
            "means and say local-dir:FOLDER"
        ) from error
    name = ""
    try:
        for name in names:
            try:
                return Path(hf_hub_download(repository, name, revision=revision or None))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f"weights: {source}: the Hub cannot be reached, and {name} is not in its cache here; fetch the files by other means "
            "and say local-dir:FOLDER"
        ) from error
    except GatedRepoError as error:
        raise WeightsError(
            f"weights: {source}: has terms; accept them on its page, and log in (hf auth login)"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"weights: {source}: there is no such repository, or it is private: log in (hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"weights: {source}: there is no revision {revision}") from error
    except Exception as error:  # of a name that cannot be one, of the HTTP client, of the disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"weights: {source}: {reason}") from error
    raise WeightsError(f"weights: {source}: has no {' and no '.join(names)}; expected {_CONTENTS}")


def _parse(source: str, config_file: Path, find_weights: Callable[[], Path], content: Any) -> TimmFolder:
    if not isinstance(content, dict) or not isinstance(content.get("architecture"), str):
        raise ValueError("expected an object with timm's name of an architecture")
    config = content.get("pretrained_cfg", content)  # timm's first files had one object for both
    model_args = content.get("model_args", {})
    if not isinstance(config, dict) or not isinstance(model_args, dict):
        raise ValueError("pretrained_cfg, model_args: expected objects")
    args = dict(model_args)
    num_classes = args.pop("num_classes", content.get("num_classes", config.get("num_classes", 1000)))
    if type(num_classes) is not int or num_classes < 0:
        raise ValueError(f"num_classes: expected a whole number of 0 or more, got {num_classes!r}")
    layers, groups, width = (args.pop(name, None) for name in ("layers", "cardinality", "base_width"))
    if layers is not None and not (isinstance(layers, list) and all(type(n) is int for n in layers)):
        raise ValueError(f"layers: expected numbers of blocks, got {layers!r}")
    for name, value in (("cardinality", groups), ("base_width", width)):
        if value is not None and type(value) is not int:
            raise ValueError(f"{name}: expected a whole number, got {value!r}")
    for place, name, expected in (
        (args, "in_chans", 3),
        (args, "global_pool", "avg"),
        (content, "global_pool", "avg"),
    ):
        if (value := place.pop(name, expected)) != expected:
            raise ValueError(f"{name}: expected {expected!r}, got {value!r}")
    if strangers := sorted(args.keys() - _TRAINING_ARGS):
        raise ValueError(f"model_args: {', '.join(strangers)}: would make another network of it")
    labels = content.get("label_names", config.get("label_names", content.get("labels")))
    return TimmFolder(
        source, config_file, find_weights, content["architecture"],
        None if layers is None else tuple(layers), groups, width,
        {key: value for key, value in config.items() if key not in ("architecture", "labels", "label_names")},
        read_spec(config), num_classes, _read_labels(labels, num_classes),
    )  # fmt: skip


def _read_labels(names: Any, num_classes: int) -> tuple[str, ...] | None:
    if names is None or not num_classes:
        return None
    if isinstance(names, dict):  # a class's number to its name, where some have none
        names = [names.get(str(index), str(index)) for index in range(num_classes)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"label_names: expected names, got {str(names)[:80]}")
    if len(names) != num_classes:
        raise ValueError(f"label_names: expected {num_classes}, one a class, got {len(names)}")
    return tuple(names)


# What timm.create_model takes and there is not here: the values that ask for nothing else than what is here, and what to use.
_TIMM_OPTIONS: dict[str, tuple[tuple[Any, ...], str]] = {
    "features_only": ((False,), "use model.feature_maps(images), or model.forward_intermediates as in timm"),
    "out_indices": ((None,), "use model.feature_maps(images, stages=…)"),
    "in_chans": ((3, None), "expected 3; of one channel make three: images.expand(-1, 3, -1, -1)"),
    "checkpoint_path": (("", None), "use weights=…"),
    "pretrained_cfg": (
        (None,),
        "use weights=… for a file and swsl.PreprocessSpec for how images are prepared",
    ),
    "pretrained_cfg_overlay": (
        (None,),
        "use weights=… for a file and swsl.PreprocessSpec for how images are prepared",
    ),
    "cache_dir": ((None,), "set $TORCH_HOME, or $HF_HOME for what is on the Hub"),
    "global_pool": (
        ("avg", None),
        "expected 'avg'; maps before any pooling are model.forward_features(images)",
    ),
    "output_stride": ((32, None), "expected 32"),
    "drop_rate": (
        (0, None),
        "there is no dropout here; before the classifier it is model.fc.register_forward_pre_hook("
        "lambda fc, x: torch.nn.functional.dropout(x[0], 0.2, fc.training))",
    ),
    "drop_path_rate": ((0, None), "there is no stochastic depth here"),
    "drop_block_rate": ((0, None), "there is no DropBlock here"),
    "scriptable": ((True, False, None), ""),
    "exportable": ((True, False, None), ""),
    "no_jit": ((True, False, None), ""),
}


def refuse_options(options: Mapping[str, Any]) -> None:
    """Refuse what ``timm.create_model`` takes and `swsl.create_model` has not, unless it asks for nothing else than what is here.

    Raises:
        ValueError: an option that would change something; the message says what to use.
        TypeError: an option that timm does not have either.
    """
    for name, value in options.items():
        if name not in _TIMM_OPTIONS:
            raise TypeError(
                f"{name}: no argument of create_model, which takes pretrained, weights, num_classes and progress"
            )
        harmless, instead = _TIMM_OPTIONS[name]
        if value not in harmless:
            raise ValueError(f"{name}={value!r}: {instead}")
