"""The command that writes a model to a file or folder: for our runners, LibTorch and torch.export, ONNX's runtimes, timm and the Hub."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..system.files import resolve_target


def add_export(commands: Any) -> None:
    """The command's arguments."""
    command = commands.add_parser(
        "export",
        help="freeze a model into one file for the runner, and for LibTorch or torch.export; or write it for other programs",
    )
    command.add_argument(
        "model", nargs="?", metavar="NAME|FILE", help="a variant, or a training run's best.pth"
    )
    command.add_argument(
        "--from", dest="foreign", metavar="timm:NAME|torchvision:NAME",
        help="instead: a ResNet or ResNeXt of timm or torchvision, or another network of the same operators, with its own "
        "preprocessing",
    )  # fmt: skip
    command.add_argument(
        "--no-pretrained", action="store_true", help="with --from: weights from a fixed seed, to measure with"
    )
    command.add_argument(
        "--test-size",
        action="store_true",
        help="with --from timm:NAME: the input of its tests, often larger than the training's",
    )
    command.add_argument(
        "--weights",
        metavar="FILE",
        help="path or URL of other weights: a state dict or a training program's checkpoint",
    )
    command.add_argument(
        "-o", "--output", metavar="FILE",
        help="what to write: TorchScript, a program of torch.export if its name ends in .pt2, or ONNX if it ends in .onnx (default "
        "model.pt, or model.pt2 where Python is 3.14 and has no TorchScript)",
    )  # fmt: skip
    command.add_argument(
        "--format", choices=("timm", "triton"),
        help="instead: write a folder for timm and the Hugging Face Hub, or the model into a repository of Triton Inference Server",
    )  # fmt: skip
    command.add_argument(
        "--with-preprocessing", action="store_true",
        help="ONNX: take uint8 RGB images N×H×W×3, and resize, crop and normalise them in the graph",
    )  # fmt: skip
    command.add_argument(
        "--no-check", action="store_true", help="ONNX: write it where no runtime is installed to try it in"
    )
    command.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from ..system.progress import working
    from ..weights import file_sha256

    if (arguments.model is None) == (arguments.foreign is None):
        raise argparse.ArgumentError(None, "expected a NAME, a FILE or --from, one of them")
    output, write = _writer(arguments)
    source, load = _reader(arguments)
    name = arguments.foreign or arguments.model
    with working(f"exporting {name}"):
        loaded = load()
        checks = write(
            loaded.model, output, spec=loaded.spec, labels=loaded.labels, license=loaded.license,
            weights_sha256=file_sha256(source) if source else None,
        )  # fmt: skip
    files = Path(output).rglob("*") if os.path.isdir(output) else [Path(output)]
    size = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
    trained = arguments.model and os.path.isfile(arguments.model)
    licence = loaded.license or ("of your own" if trained else "of a licence that is not stated")
    weights = "from a fixed seed" if arguments.no_pretrained else licence
    print(f"{Path(output)}: {name}, {size:.0f} MB, weights {weights}")
    for check in checks or []:
        print(f"  {check}")
    if arguments.no_check:
        print("  not checked: nobody has run it yet")
    return 0


def _writer(arguments: argparse.Namespace) -> tuple[str, Callable[..., Any]]:
    """What to write, seen to be writable before any work, and the function that writes it."""
    from ..deploy.export import default_suffix, export_model
    from ..deploy.triton_repository import export_triton, resolve_triton_folder
    from ..formats.onnx_graph import export_onnx
    from ..formats.timm_folder import export_timm, resolve_timm_folder

    if arguments.format == "timm" and arguments.foreign:
        raise argparse.ArgumentError(None, f"--from: {arguments.foreign} is no ResNeXt of ours; timm has it")
    if arguments.format and not arguments.output:
        raise argparse.ArgumentError(
            None, f"--output: --format {arguments.format} needs the folder to write, -o FOLDER"
        )
    output = arguments.output or f"model{default_suffix()}"
    for_onnx = not arguments.format and output.lower().endswith(".onnx")
    for name in ("with_preprocessing", "no_check"):
        if getattr(arguments, name) and not for_onnx:
            raise argparse.ArgumentError(
                None, f"--{name.replace('_', '-')}: is of ONNX files; expected -o FILE.onnx"
            )
    if arguments.format == "timm":
        resolve_timm_folder(output)
        return output, export_timm
    if arguments.format == "triton":
        output = str(Path(output, _name_in_triton(arguments)))
        resolve_triton_folder(output)
        return output, export_triton
    resolve_target(output)
    if for_onnx:
        return output, partial(
            export_onnx, with_preprocessing=arguments.with_preprocessing, check=not arguments.no_check
        )
    return output, export_model


def _name_in_triton(arguments: argparse.Namespace) -> str:
    """The variant's, that of another tool's model or folder, or of the folder that a training run is in."""
    from ..variants import find_variant

    name = arguments.foreign or arguments.model
    if not arguments.foreign and os.path.isfile(name):
        return Path(name).absolute().parent.name
    if ":" in name:
        return Path(name.partition(":")[2]).absolute().name
    return find_variant(name).name


def _reader(arguments: argparse.Namespace) -> tuple[Path | None, Callable[[], Any]]:
    """The file of the weights, where there is one, and the function that loads the model."""
    from ..training.checkpoint import load_checkpoint, load_model, model_files
    from ..weights import locate
    from .foreign import load_foreign

    if arguments.foreign is None and (arguments.no_pretrained or arguments.test_size):
        raise argparse.ArgumentError(None, "--no-pretrained and --test-size: only with --from")
    if arguments.foreign:
        if arguments.weights and arguments.no_pretrained:
            raise argparse.ArgumentError(None, "--no-pretrained: --weights are some; give one or the other")
        weights = locate(arguments.weights) if arguments.weights else None
        return weights, partial(
            load_foreign, arguments.foreign, weights=weights, pretrained=not arguments.no_pretrained,
            test_size=arguments.test_size,
        )  # fmt: skip
    if os.path.isfile(arguments.model):
        if arguments.weights:
            raise argparse.ArgumentError(None, f"--weights: {arguments.model} has weights of its own")
        return Path(arguments.model), partial(load_checkpoint, Path(arguments.model))
    weights = model_files(arguments.model, arguments.weights)[0]
    return weights, partial(load_model, arguments.model, arguments.weights)
