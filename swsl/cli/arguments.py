"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import re

DEFAULT_MODEL = "swsl_resnext50_32x4d"


def add_model(command: argparse._ActionsContainer, *, runner: bool = True) -> argparse._ActionsContainer:
    """The arguments that name a model, and a frozen module in its place where ``runner`` says so.

    Returns:
        The group of those that exclude each other: each says where the weights are.
    """
    command.add_argument(
        "--model", type=variant_name, default=DEFAULT_MODEL, metavar="NAME", help=f"default {DEFAULT_MODEL}"
    )
    sources = command.add_mutually_exclusive_group()
    sources.add_argument(
        "--weights", metavar="FILE",
        help="path or URL of other weights: a state dict or a training program's checkpoint; best.pth of `swsl finetune` "
        "brings its own model, and so does a folder of timm's: local-dir:DIR or hf-hub:OWNER/NAME",
    )  # fmt: skip
    if runner:
        sources.add_argument(
            "--runner", metavar="FILE", help="a frozen module to run instead, as `swsl export` writes"
        )
    return sources


def refuse_two_models(arguments: argparse.Namespace) -> None:
    """A frozen module is a whole model: a --model beside it would be without effect."""
    module = arguments.runner or getattr(arguments, "frozen", None)
    if module and arguments.model != DEFAULT_MODEL:
        raise argparse.ArgumentError(None, f"--model: {module} is a whole model; give one or the other")


def variant_name(name: str) -> str:
    """An argument's type: the name of a variant, in any tool's words, or of a folder of timm's."""
    from ..timm_form import is_folder
    from ..variants import find_variant

    if is_folder(name):
        return name
    try:
        return find_variant(name).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_device(command: argparse._ActionsContainer) -> None:
    """The argument that says where a model runs."""
    command.add_argument(
        "--device", type=device_name, default="auto", metavar="DEVICE",
        help="cpu, cuda, cuda:N or auto: a GPU if there is one (default auto)",
    )  # fmt: skip


def add_picture(command: argparse.ArgumentParser, name: str) -> None:
    """The argument that says where a command's picture goes, by default to ``name``."""
    command.add_argument(
        "-o", "--output", default=name, metavar="FILE", help=f"a .png or .jpg (default {name})"
    )
    command.set_defaults(pictures=("output",))


def add_cores(command: argparse._ActionsContainer) -> None:
    """The argument that bounds how many cores a model and what feeds it take."""
    command.add_argument(
        "--cores", type=positive, metavar="N",
        help="that decoding and the forward pass share (default: as many as this process may use, by its affinity, its "
        "cgroup's CPU quota and OMP_NUM_THREADS, the smallest of them)",
    )  # fmt: skip


def add_threads(command: argparse._ActionsContainer) -> None:
    """The arguments that say how a compiled runner's cores are shared."""
    command.add_argument(
        "--threads", type=positive, metavar="N",
        help="that compute the forward pass on a CPU, at most --cores (default: as many)",
    )  # fmt: skip
    command.add_argument(
        "--workers", type=positive, metavar="N",
        help="threads that read and decode images; they and the forward pass share the cores, so more only help where reading is "
        "slow (default: as many as --cores)",
    )  # fmt: skip


def take_cores(cores: int | None) -> None:
    """Bounds eager PyTorch; the compiled runner has its own option."""
    if cores:
        import torch

        torch.set_num_threads(cores)


def device_name(text: str) -> str:
    """An argument's type: what the runners' `device` takes."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda, cuda:N or auto, got {text!r}")
    return text


def positive(text: str) -> int:
    """An argument's type: a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)
