"""Whether a training run goes on with an earlier one, and from what: its ``last.pth``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ..system.torchrun import is_first
from .checkpoint import Checkpoint, load_checkpoint
from .distributed import Processes
from .recipe import TrainOptions

_FREE_TO_CHANGE = {"output", "resume", "workers", "device", "checkpoint_steps", "max_corrupt"}


def fingerprint(options: TrainOptions, training_images: int, processes: int) -> dict[str, str]:
    """What a resumed run must share with its beginning, as JSON."""
    values = {key: value for key, value in asdict(options).items() if key not in _FREE_TO_CHANGE}
    values |= {
        "data": str(options.data.resolve()),
        "training images": training_images,
        "processes": processes,
    }
    return {key: json.dumps(value) for key, value in values.items()}


def run_to_resume(options: TrainOptions, processes: Processes, report: Callable[[str], None]) -> Path | None:
    """The ``last.pth`` to go on with, None at a run's beginning.

    Raises:
        ValueError: there is a run that nobody asked to resume, or not every process sees it.
    """
    path = options.output / "last.pth"
    seeing = processes.gather(path.exists())
    if len(set(seeing)) > 1:  # they would train on from different weights, and nothing would show it
        raise ValueError(
            f"output: {seeing.count(True)} of {len(seeing)} processes find {path}; on several machines all must: "
            "share the folder, or copy the file to each"
        )
    if not path.exists():
        if options.resume:
            report(f"{path} does not exist yet: starting from the beginning")
        return None
    if not options.resume:
        raise ValueError(
            f"output: {options.output} holds a run already; continue it with --resume, or name another folder"
        )
    return path


def load_run(path: Path, here: dict[str, str]) -> Checkpoint:
    """The checkpoint, with its training state; ``here`` is the `fingerprint` of the run that goes on with it.

    Raises:
        ValueError: a file that does not say how to resume, or a run with another fingerprint.
    """
    checkpoint = load_checkpoint(path)
    state = checkpoint.training
    if state is None:
        raise ValueError(f"output: {path} does not say how to resume; expected a file that training wrote")
    there = state["options"]
    changed = [key for key in here if here[key] != there.get(key)]
    if changed:
        raise ValueError(
            "resume: the run was started with "
            + ", ".join(f"{key} {there.get(key)}, not {here[key]}" for key in changed)
            + "; resume it with the same, or start another in a new folder"
        )
    return checkpoint


def what_is_kept(options: TrainOptions, saved: tuple[int, int] | None) -> str:
    """What an interrupted run has left and how to go on, in words; none in processes that are not the first.

    Args:
        options: the run's.
        saved: epoch and step of the ``last.pth`` that this run has written or read.
    """
    if not is_first():
        return ""
    path = options.output / "last.pth"
    if not path.exists():
        advice = "" if options.checkpoint_steps else "; --checkpoint-steps N writes one every N steps"
        return f"nothing was kept, for there was no checkpoint yet{advice}"
    where = f", of epoch {saved[0] + 1} after step {saved[1]}," if saved else ""
    return f"{path}{where} is kept; go on with the same command and --resume"
