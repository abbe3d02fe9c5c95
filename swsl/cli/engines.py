"""The runner that classifies for a command, and the frozen modules that are kept for it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..system.progress import working
from ..version import __version__
from .arguments import refuse_two_models, take_cores

if TYPE_CHECKING:
    from ..deploy.protocol import AnyRunner


def open_runner(arguments: argparse.Namespace, **options: Any) -> AnyRunner:
    """The compiled runner where it is built, eager PyTorch where it is not, which is then said."""
    from ..deploy.runner import Runner, build_info

    refuse_two_models(arguments)
    built = build_info()
    if arguments.runner or built["compiled"]:
        module = arguments.runner or cached_export(arguments.model, arguments.weights)
        with working(f"loading {module}"):
            return Runner(module, **options)
    from ..deploy.eager import EagerRunner
    from ..training.checkpoint import load_model

    for name in ("dtype", "threads"):
        if name in options:
            raise ValueError(f"--{name}: needs the compiled runner, and {built['reason']}")
    take_cores(options.pop("cores", None))
    loaded = load_model(arguments.model, arguments.weights)
    runner = EagerRunner(loaded.model, spec=loaded.spec, labels=loaded.labels, **options)
    reason = built["reason"].splitlines()[0].rstrip(":")
    print(f"swsl: {reason}; using eager PyTorch", file=sys.stderr)
    return runner


def cached_export(name: str, weights: str | os.PathLike[str] | None = None) -> Path:
    """The frozen module of a variant: frozen once for these weights, then reused from torch.hub's cache.

    Raises:
        swsl.WeightsError: the weights cannot be had or do not fit.
    """
    from ..deploy.export import default_suffix, export_model
    from ..formats.metadata import FORMAT
    from ..timm_form import is_folder
    from ..training.checkpoint import load_model, model_files
    from ..variants import find_variant, names_model
    from ..weights import file_sha256

    files = model_files(name, weights)
    with working(f"hashing {files[0]}"):
        digest, *others = map(file_sha256, files)
    folder = Path(torch.hub.get_dir(), "swsl")
    called = str(weights) if names_model(weights) else name
    label = "-".join(
        [
            "timm" if is_folder(called) else find_variant(called).name,
            *(each[:16] for each in (digest, *others)),
        ]
    )
    made_by = f"format{FORMAT}-swsl{__version__}-torch{torch.__version__}"
    path = folder / f"{label}-{made_by}{default_suffix()}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        loaded = load_model(name, weights)
        with working(f"freezing {name}, once"):
            export_model(
                loaded.model,
                path,
                spec=loaded.spec,
                labels=loaded.labels,
                license=loaded.license,
                weights_sha256=digest,
            )
    return path
