"""Whether a training run goes on with an earlier one, and from what: its ``last.pth``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..system.files import open_output
from ..system.torchrun import is_first
from .checkpoint import Checkpoint, load_checkpoint
from .data import Augmentation
from .distributed import Processes
from .recipe import Architecture, TrainOptions

_AUGMENTATION = {field.name for field in fields(Augmentation)}
_OPTIONS = {field.name for field in fields(TrainOptions)} | _AUGMENTATION
_OPTIONS_FILE = "options.json"
_FREE_TO_CHANGE = {"output", "resume", "workers", "device", "checkpoint_steps", "max_corrupt"}


def fingerprint(
    options: TrainOptions, training_images: int, processes: int, teacher: str | None = None
) -> dict[str, str]:
    """What a resumed run must share with its beginning, as JSON; ``teacher`` is the fingerprint of the teacher's model."""
    values = {key: value for key, value in asdict(options).items() if key not in _FREE_TO_CHANGE}
    values |= {
        "data": str(options.data.resolve()),
        "training images": training_images,
        "processes": processes,
    }
    if options.teacher:
        values |= {"teacher": str(Path(options.teacher).resolve()), "as the teacher's fingerprint": teacher}
    return {key: json.dumps(value) for key, value in values.items()}


def given_options(given: Mapping[str, Any]) -> TrainOptions:
    """The options of a run of which some are given, those of `Augmentation` beside them; other names are ignored. The rest are
    those of the run that is to be resumed, where it is there, or else the defaults."""
    values = {name: value for name, value in given.items() if name in _OPTIONS}
    if values.get("resume"):
        begun = _flat(_begun_with(values["output"]))
        values = {key: begun[key] for key in _OPTIONS & begun.keys()} | values
    augmentation = {key: values.pop(key) for key in _AUGMENTATION & values.keys()}
    return TrainOptions(**values, augmentation=Augmentation(**augmentation))


def note_options(folder: Path, options: Mapping[str, str]) -> None:
    """Keep a `fingerprint` for a run that is stopped before its first checkpoint."""
    with open_output(str(folder / _OPTIONS_FILE)) as file:
        json.dump(dict(options), file, indent=1)


def _begun_with(folder: Path) -> dict[str, str]:
    """The `fingerprint` of the run in a folder; nothing where there is no run."""
    if (path := folder / "last.pth").exists():
        state = load_checkpoint(path).training or {}
        found: dict[str, str] = state.get("options", {})
    else:
        path = folder / _OPTIONS_FILE
        try:
            found = json.loads(path.read_text("utf-8")) if path.exists() else {}
        except ValueError as error:
            raise ValueError(
                f"{path}: damaged ({error}); remove it, and give the run's options again"
            ) from error
    return found


def run_to_resume(options: TrainOptions, processes: Processes, report: Callable[[str], None]) -> Path | None:
    """The ``last.pth`` to go on with, None at a run's beginning.

    Raises:
        ValueError: there is a run that nobody asked to resume, or not every process sees it.
    """
    path = options.output / "last.pth"
    seeing = processes.gather(path.exists())
    if len(set(seeing)) > 1:  # they would train on from different weights, and nothing would show it
        raise ValueError(
            f"{options.output}: {seeing.count(True)} of {len(seeing)} processes find {path}; on several machines all must: "
            "share the folder, or copy the file to each"
        )
    if not path.exists():
        if options.resume:
            report(f"{path} does not exist yet: starting from the beginning")
        return None
    if not options.resume:
        raise ValueError(
            f"{options.output}: holds a run already; continue it with --resume, or name another folder"
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
        raise ValueError(f"{path}: does not say how to resume; expected a file that training wrote")
    there, now = (_flat(options) for options in (state["options"], here))
    differing = [name for name in now if now[name] != there.get(name)]
    if differing:
        then, asked = (
            ", ".join(_told(name, values.get(name)) for name in differing) for values in (there, now)
        )
        raise ValueError(
            f"resume: the run in {path.parent} has {then}; asked for here: {asked}. Give the same options, or on the command "
            f"line none. To train its model further, start another run: weights={path.parent / 'best.pth'} "
            f"output={path.parent.with_name(path.parent.name + '2')}"
        )
    return checkpoint


def _flat(options: dict[str, str]) -> dict[str, Any]:
    """A `fingerprint`'s options by their own names."""
    values = {key: json.loads(value) for key, value in options.items()}
    if found := values.get("architecture"):
        values["architecture"] = Architecture(**{**found, "layers": tuple(found["layers"])})
    values |= values.pop("augmentation", {})
    return values


def _told(name: str, value: object) -> str:
    if name not in _OPTIONS:  # a count
        return f"{value} {name}"
    return f"{name}={value!r}" if isinstance(value, str) else f"{name}={value}"


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
        return f"nothing was kept but the options, for there was no checkpoint yet{advice}"
    where = f", of epoch {saved[0] + 1} after step {saved[1]}," if saved else ""
    return f"{path}{where} is kept; go on with the same command and --resume"
