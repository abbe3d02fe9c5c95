"""Folders of images as classes, checked before any time is spent on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..bulk.sources import Skipped, is_hidden, walk_images, why_no_images


class DataError(ValueError):
    """A data set that cannot be trained or measured on. The message names the folder and says what to do."""


class Samples(NamedTuple):
    """Image files, their class numbers, and what the classes are called."""

    paths: list[str]
    targets: list[int]
    classes: list[str]


def list_class_folders(root: str | os.PathLike[str], skipped: Skipped | None = None) -> Samples:
    """The images under ``root/CLASS/``, at any depth, classes and files in sorted order; see `walk_images`.

    Args:
        root: the folder.
        skipped: gets what is left out; without one it is reported on stderr.

    Raises:
        DataError: no such folder, no classes in it, a class without an image, or a folder that cannot be listed.
    """
    if skipped is None:
        skipped = Skipped()
        try:
            return list_class_folders(root, skipped)
        finally:
            skipped.report()
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected {folder}/CLASS/*.jpg")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    for name in filter(is_hidden, names):
        skipped.add("hidden files and folders", str(folder / name))
    classes = [name for name in names if not is_hidden(name)]
    if not classes:
        what = "no class folders" if any(folder.iterdir()) else "this folder is empty"
        raise DataError(f"{folder}: {what}; expected {folder}/CLASS/*.jpg")
    paths: list[str] = []
    targets: list[int] = []
    for number, name in enumerate(classes):
        found = sorted(walk_images(str(folder / name), skipped, follow_links=True))
        if skipped.unlisted:
            raise DataError(f"{skipped.unlisted[0]}: cannot be listed; make it readable, or remove it")
        if not found:
            raise DataError(f"{why_no_images(folder / name)}; add images or remove the folder")
        paths += found
        targets += [number] * len(found)
    return Samples(paths, targets, classes)


def list_training_data(root: str | os.PathLike[str], *, report: bool = True) -> tuple[Samples, Samples]:
    """The training and validation images of ``root/train/CLASS/`` and ``root/val/CLASS/``.

    Args:
        root: the folder.
        report: print a line that counts what is left out.

    Raises:
        DataError: what `list_class_folders` refuses, fewer than two classes, or folders whose classes differ.
    """
    root = Path(root)
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise DataError(
                f"{root / part}: no such folder; expected {root}/train/CLASS/*.jpg and {root}/val/CLASS/*.jpg "
                "(a fifth of each class's images is a good val)"
            )
    skipped = Skipped()
    try:
        train, val = (list_class_folders(root / part, skipped) for part in ("train", "val"))
    finally:
        if report:
            skipped.report()
    if train.classes != val.classes:
        only = {
            "train": sorted(set(train.classes) - set(val.classes)),
            "val": sorted(set(val.classes) - set(train.classes)),
        }
        told = [f"only in {part}: {', '.join(names[:5])}{', …' * (len(names) > 5)}" for part, names in only.items() if names]  # fmt: skip
        raise DataError(f"{root}: train and val must hold the same classes; {'; '.join(told)}")
    if len(train.classes) < 2:
        raise DataError(f"{root}: a classifier needs two classes or more, found only {train.classes[0]!r}")
    return train, val


def check_unreadable(errors: Sequence[str], images: int, allowed: float) -> None:
    """That no more than the share ``allowed`` of so many images had errors.

    Raises:
        DataError: more had.
    """
    if len(errors) > allowed * images:
        raise DataError(
            f"{len(errors)} of {images} images cannot be read, more than {allowed:.0%} ({errors[0]}); repair or remove them, or "
            "raise max_corrupt"
        )
