"""Images with the classes they show, in the layouts that data sets come in."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..bulk.sources import find_images, why_no_images
from ..labels import LABELS, WORDNET_IDS
from .class_folders import DataError, list_class_folders


@dataclass
class Labelled:
    """Image files and the number of each one's class among the model's."""

    paths: list[str]
    targets: list[int]
    real: list[list[int]] | None = None
    """The ReaL labels of each image: any of them is right, and an image with none is left out."""


def read_labelled(
    source: str | os.PathLike[str],
    labels: Sequence[str],
    *,
    truth: str | os.PathLike[str] | None = None,
    real: str | os.PathLike[str] | None = None,
) -> Labelled:
    """Labelled images in any of the usual layouts.

    Args:
        source: a folder with a folder for each class; or a folder of images, with ``truth``; or a CSV file with the
            columns ``path`` (relative to the file) and ``label``. A class is called by its label, its WordNet id
            (n01440764, for a model of the 1,000 ImageNet classes), or its number.
        labels: the model's.
        truth: the classes of a flat folder's images: a line for each image in the order of the sorted names
            (a class, or the devkit's number where ``meta.mat`` lies beside the file), or lines of name and class,
            separated by a comma or blanks.
        real: ReaL's ``real.json``, for images that are called ``ILSVRC2012_val_00000001`` and so on.

    Raises:
        DataError: a source in none of these layouts, a class that the model does not have, an image without a class.
    """
    source = Path(source)
    if source.is_file() and truth is None:
        data = _read_csv(source, labels)
    elif truth is not None:
        data = _read_truth(source, Path(truth), labels)
    else:
        samples = list_class_folders(source)
        numbers = class_numbers(samples.classes, labels, source)
        data = Labelled(samples.paths, [numbers[target] for target in samples.targets])
    if real is not None:
        data.real = _read_real(Path(real), data.paths, labels)
    return data


def class_numbers(names: Sequence[str], labels: Sequence[str], where: str | os.PathLike[str]) -> list[int]:
    """The class numbers that ``names`` mean: all labels, all WordNet ids, or all numbers.

    Raises:
        DataError: some are none of a model's with these labels, or are the label of two classes.
    """
    tables = [(range(len(labels)), labels)]
    if tuple(labels) == LABELS:
        tables.append((range(len(labels)), WORDNET_IDS))
    tables.append((range(len(labels)), [str(number) for number in range(len(labels))]))
    best: list[str] | None = None
    for numbers, words in tables:
        table = dict(zip(words, numbers, strict=True))
        unknown = [name for name in names if name not in table]
        if not unknown:
            twice = [name for name in names if list(words).count(name) > 1] if len(table) < len(words) else []
            if twice:
                raise DataError(
                    f"{where}: {twice[0]!r} is the label of two classes; name the classes by WordNet id or number"
                )
            return [table[name] for name in names]
        if best is None or len(unknown) < len(best):
            best = unknown
    assert best is not None
    known = f"{labels[0]!r}, {labels[1]!r}, …" if len(labels) > 1 else repr(labels[0])
    raise DataError(
        f"{where}: {len(best)} classes are none of the model's {len(labels)} ({', '.join(best[:5])}"
        f"{', …' * (len(best) > 5)}); expected labels ({known}), WordNet ids of the 1,000 ImageNet classes, or class numbers"
    )


def _read_csv(path: Path, labels: Sequence[str]) -> Labelled:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not {"path", "label"} <= set(rows.fieldnames or ()):
            raise DataError(
                f"{path}: expected the columns path and label in its first line, found {rows.fieldnames}"
            )
        pairs = [(row["path"], row["label"]) for row in rows]
    if not pairs:
        raise DataError(f"{path}: no images")
    for number, pair in enumerate(pairs, 1):
        if not all(pair):
            raise DataError(f"{path}: image {number}: expected a path and a label, found {pair}")
    names = sorted({label for _, label in pairs})
    numbers = dict(zip(names, class_numbers(names, labels, path), strict=True))
    return Labelled([str(path.parent / image) for image, _ in pairs], [numbers[label] for _, label in pairs])


def _read_truth(folder: Path, truth: Path, labels: Sequence[str]) -> Labelled:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the images that {truth} is about")
    if not truth.is_file():
        raise DataError(f"truth: {truth}: no such file")
    paths = list(find_images([str(folder)]))
    if paths == [str(folder)]:
        raise DataError(f"{why_no_images(folder)}; expected the images that {truth} is about")
    lines = [line.strip() for line in truth.read_text("utf-8").splitlines() if line.strip()]
    if (
        lines and lines[0] == "ImageId,PredictionString"
    ):  # Kaggle's file has a heading, and boxes after the class
        lines = [line.split()[0] for line in lines[1:]]
    pairs = [re.split(r"\s*,\s*|\s+", line, maxsplit=1) for line in lines]
    if pairs and all(len(pair) == 2 for pair in pairs):
        classes = {os.path.splitext(name)[0]: word for name, word in pairs}
        stems = [Path(path).stem for path in paths]
        missing = [path for path, stem in zip(paths, stems, strict=True) if stem not in classes]
        if missing:
            raise DataError(f"{truth}: no class for {len(missing)} images, {missing[0]} for one")
        words = [classes[stem] for stem in stems]
    elif len(lines) == len(paths):
        words = lines
        if (truth.parent / "meta.mat").is_file():
            words = _from_devkit(words, truth.parent / "meta.mat")
        elif truth.name == "ILSVRC2012_validation_ground_truth.txt":
            raise DataError(
                f"{truth}: holds the devkit's own class numbers, which are no class numbers of a model; "
                "put the devkit's meta.mat beside it"
            )
    else:
        raise DataError(f"{truth}: {len(lines)} lines for the {len(paths)} images in {folder}")
    names = sorted(set(words))
    numbers = dict(zip(names, class_numbers(names, labels, truth), strict=True))
    return Labelled(paths, [numbers[word] for word in words])


def _from_devkit(numbers: list[str], meta: Path) -> list[str]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"{meta}: reading it needs SciPy: pip install scipy") from error
    synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
    wordnet = {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in synsets}
    unknown = sorted(set(numbers) - set(wordnet))
    if unknown:
        raise DataError(f"{meta}: knows no class number {unknown[0]!r}")
    return [wordnet[number] for number in numbers]


def _read_real(path: Path, images: Sequence[str], labels: Sequence[str]) -> list[list[int]]:
    if tuple(labels) != LABELS:
        raise DataError(
            f"real: {path}: is about the 1,000 ImageNet classes, but the model has {len(labels)} others"
        )
    real = json.loads(path.read_text("utf-8"))
    found = []
    for image in images:
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", Path(image).stem)
        if not match or not 1 <= int(match[1]) <= len(real):
            raise DataError(
                f"real: {image}: expected a name from ILSVRC2012_val_00000001 to ILSVRC2012_val_{len(real):08d}"
            )
        found.append(real[int(match[1]) - 1])
    return found
