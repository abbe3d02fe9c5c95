"""swsl.json, what a frozen module says about itself, read strictly: the readable twin of cpp/src/model/frozen_model.cpp.

A file may come from anywhere: whatever is wrong with it ends in a `ModelError` that names it, in little time and memory.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import torch

from ..preprocess import PreprocessSpec
from .archive import Archive, ArchiveError
from .golden import TOLERANCES

FORMAT = 3
METADATA_FILE = "swsl.json"
LARGEST_INPUT = 1024
"""Pixels of an input's side, so that the golden check of a faulty file costs little."""

_ENTRY = f"extra/{METADATA_FILE}"
_LONGEST_METADATA = 4 << 20
_MOST_VALUES, _DEEPEST = 300_000, 64  # each value takes many times its text's memory
_MOST_CHANNELS, _LONGEST_WINDOW = 1 << 16, 1 << 10
_MOST_OPERATORS = 1_000
_SHARED_BYTES, _MOST_READS = (
    1 << 20,
    2,
)  # TorchScript stores equal weights once, as those of branches that begin as zeros
_LARGEST_FLOAT = torch.finfo(torch.float32).max


class ModelError(RuntimeError):
    """A frozen module that cannot be read, written or trusted. The message names the file and says what to do."""


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a frozen module says about itself, without reading its weights. All of it is checked.

    Raises:
        ModelError: no such file, no frozen module of ours, a damaged one, or one of another format.
    """
    return open_frozen(path)[0]


def open_frozen(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Archive]:
    """The metadata of a frozen module and the archive that holds its weights. Raises as `read_metadata` does."""
    name = os.fsdecode(path)
    try:
        archive = _open_archive(name)
        if _ENTRY not in archive.entries:
            kind = "a TorchScript module" if has_script(archive) else "a program of torch.export"
            known = has_script(archive) or "archive_format" in archive.entries
            found = f"{kind} without {METADATA_FILE} inside: not exported by swsl" if known else (
                "a zip file, but neither TorchScript nor a program; weights have to be exported first"
            )  # fmt: skip
            raise ModelError(f"{name}: {found} (make a frozen module with: swsl export)")
        metadata = _parse(archive)
        _check(_Field(metadata, ""), archive)
    except ArchiveError as error:
        raise ModelError(f"{name}: damaged: {error}; get it again, or export it again") from error
    except ValueError as error:
        raise ModelError(f"{name}: {METADATA_FILE} inside it: {error}") from error
    return metadata, archive


def has_script(archive: Archive) -> bool:
    """Whether it is a `.pt`, whatever its name: TorchScript beside the network table. In a `.pt2` torch.export's program is."""
    return "constants.pkl" in archive.entries


def _open_archive(name: str) -> Archive:
    try:
        if os.path.isdir(name):
            raise ModelError(f"{name}: is a directory, expected a frozen module (.pt or .pt2)")
        return Archive(name)
    except FileNotFoundError as error:
        raise ModelError(
            f"{name}: no such file; expected a frozen module (make one with: swsl export)"
        ) from error
    except (OSError, ValueError) as error:  # the latter of a name that no file can have
        reason = getattr(error, "strerror", error)
        raise ModelError(f"{name}: cannot be read ({reason}); check its permissions") from error
    except ArchiveError as error:
        raise ModelError(
            f"{name}: no frozen module, or damaged: {error}; expected a file as swsl export writes it. Weights "
            "saved by torch.save have to be exported first"
        ) from error


def _parse(archive: Archive) -> Any:
    size = archive.entries[_ENTRY].size
    if size > _LONGEST_METADATA:
        raise ValueError(f"it has {size} bytes, expected at most {_LONGEST_METADATA}")
    data = bytes(archive.read(_ENTRY))
    _check_structure(data)
    metadata = json.loads(
        data.decode("utf-8"),
        object_pairs_hook=_members,
        parse_constant=_refuse_constant,
        parse_int=_whole,
        parse_float=_real,
    )
    json.dumps(metadata, ensure_ascii=False).encode()  # refuses half a surrogate pair
    return metadata


def _check_structure(data: bytes) -> None:
    """Counts and nesting, before they cost memory. Whether it is JSON is seen later."""
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    depth, values, texts = 0, 1, 0
    for token in re.finditer(rb'"[^"]*"?|[\[\]{},]', plain):
        first = plain[token.start()]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
        values += first in b"[{,"
        texts += first in b'"'
        if depth > _DEEPEST:
            raise ValueError(f"JSON: nested deeper than {_DEEPEST}")
        if values > _MOST_VALUES or texts > 2 * _MOST_VALUES:  # a value may have a key
            raise ValueError(f"JSON: more than {_MOST_VALUES} values")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for number, key in enumerate(names) if key in names[:number])
        raise ValueError(f'JSON: the key "{twice[:80]}" comes twice')
    return members


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"JSON: expected a value, found {text}")


def _whole(text: str) -> int | float:
    """As in C++, where an integer of more than 64 bits is a number."""
    if len(text) <= 20 and -(1 << 63) <= (number := int(text)) < 1 << 63:
        return number
    return _real(text)


def _real(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"JSON: expected a number that a double can hold, found {text[:40]}")
    return number


_KINDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
}


class _Field:
    """A value of JSON that knows its place, for errors: `Json` of cpp/src/model/json.h."""

    def __init__(self, value: Any, path: str) -> None:
        self.value, self.path = value, path

    def refuse(self, expected: str, found: object) -> NoReturn:
        raise ValueError(f'"{self.path}": expected {expected}, found {found}')

    def _typed(self, kind: type, expected: str) -> Any:
        if type(self.value) is not kind:
            self.refuse(expected, _KINDS.get(type(self.value), "null"))
        return self.value

    def __getitem__(self, key: str) -> _Field:
        path = f"{self.path}.{key}" if self.path else key
        members = self._typed(dict, "an object")
        if key not in members:
            raise ValueError(f'"{path}" is missing')
        return _Field(members[key], path)

    def items(self) -> list[_Field]:
        return [_Field(item, f"{self.path}[{i}]") for i, item in enumerate(self._typed(list, "an array"))]

    def string(self) -> str:
        text: str = self._typed(str, "a string")
        return text

    def integer(self, least: int, most: int) -> int:
        number: int = self._typed(int, "an integer")
        if not least <= number <= most:
            self.refuse(f"an integer from {least} to {most}", number)
        return number

    def number(self, least: float = -_LARGEST_FLOAT, most: float = _LARGEST_FLOAT) -> float:
        if type(self.value) is not int:
            self._typed(float, "a number")
        if not least <= self.value <= most:
            self.refuse(f"a number from {least:g} to {most:g}", self.value)
        return float(self.value)

    def numbers(self, least: int, most: int, smallest: float = -_LARGEST_FLOAT) -> None:
        values = self._sized(least, most, "numbers")
        if not all(type(x) in (int, float) and smallest <= x <= _LARGEST_FLOAT for x in values):
            for item in self.items():  # one of which says why
                item.number(smallest)

    def sized(self, least: int, most: int, what: str) -> list[_Field]:
        self._sized(least, most, what)
        return self.items()

    def _sized(self, least: int, most: int, what: str) -> list[Any]:
        values: list[Any] = self._typed(list, "an array")
        if not least <= len(values) <= most:
            self.refuse(f"{least}{f' to {most}' * (least != most)} {what}", len(values))
        return values


def _check(root: _Field, archive: Archive) -> None:
    found = root["format"].integer(-(1 << 63), 1 << 63)
    if found != FORMAT:
        cure = "update swsl" if found > FORMAT else "export the model again"
        raise ValueError(f"format {found}, this version of swsl knows format {FORMAT} only; {cure}")
    for name in ("variant", "license", "weights_sha256"):
        if root[name].value is not None:
            root[name].string()
    root["fingerprint"].string()
    for name in ("swsl", "torch"):
        root["versions"][name].string()
    architecture = root["architecture"]
    if architecture["layers"].value is not None:  # else it is no ResNeXt of ours
        for layers in architecture["layers"].sized(4, 4, "integers"):
            layers.integer(1, _MOST_CHANNELS)
    for name in ("groups", "width_per_group"):
        if architecture[name].value is not None:
            architecture[name].integer(1, _MOST_CHANNELS)
    classes = architecture["num_classes"].integer(1, _MOST_CHANNELS)
    labels = root["labels"].items()
    if len(labels) != classes:
        root["labels"].refuse(f"{classes} (architecture.num_classes)", len(labels))
    for label in labels:
        label.string()
    _check_golden(root["golden"], classes, _check_spec(root["preprocess"]))
    _check_table(root["network"], archive)


def _check_spec(field: _Field) -> list[int]:
    size = [side.integer(1, LARGEST_INPUT) for side in field["input_size"].sized(2, 2, "integers")]
    field["crop_pct"].number()
    field["interpolation"].string()
    for name in ("mean", "std"):
        field[name].numbers(3, 3)
    known = PreprocessSpec.__dataclass_fields__
    if unknown := sorted(set(field.value) - set(known)):
        field.refuse(f"{', '.join(known)} only", unknown[0][:80])
    try:
        PreprocessSpec(**field.value)
    except ValueError as error:
        raise ValueError(f'"{field.path}": {error}') from error
    return size


def _check_golden(field: _Field, classes: int, size: list[int]) -> None:
    expected = [1, 3, *size]
    shape = [side.integer(-(1 << 63), 1 << 63) for side in field["shape"].items()]
    if shape != expected:
        field["shape"].refuse(f"that of an image, {expected}", shape)
    field["features"].numbers(1, _MOST_CHANNELS)
    field["logits"].numbers(classes, classes)
    for name in ("weight_norms", "biases"):
        field[name].numbers(classes, classes, 0)
    for dtype, largest in TOLERANCES.items():
        tolerance = field["tolerances"][dtype]
        if tolerance.number() <= 0:
            tolerance.refuse("more than 0", tolerance.value)
        if tolerance.value > largest:
            tolerance.refuse(f"at most {largest:g}", tolerance.value)


def _check_table(field: _Field, archive: Archive) -> None:
    """The readable twin of cpp/src/model/network.cpp."""
    operators = field["operators"].sized(1, _MOST_OPERATORS, "operators")
    read = 0
    for before, operator in enumerate(operators):
        read += _check_operator(operator, before, archive)
        # Entries may be shared, but not so often that a small file takes the memory of a large one.
        if read > _MOST_READS * archive.size + _SHARED_BYTES:
            raise ValueError(
                f'"{field.path}": its operators read more than {_MOST_READS} times what the file holds'
            )
    for name in ("logits", "features"):
        _check_value(field[name], len(operators))


def _check_value(field: _Field, before: int) -> None:
    number = field.integer(-(1 << 63), 1 << 63)
    if not 0 <= number <= before:
        field.refuse("the batch, 0, or the number of an operator before this, counted from 1", number)


def _check_operator(field: _Field, before: int, archive: Archive) -> int:
    """The bytes of weights that it reads."""
    name = field["operator"].string()
    inputs = field["inputs"].items()
    for value in inputs:
        _check_value(value, before)
    if name not in OPERATORS:
        return 0
    expected = 2 if name == "add" else 1
    if len(inputs) != expected:
        field["inputs"].refuse(str(expected), len(inputs))
    windows = {attribute: list(_check_pair(field[attribute])) for attribute in OPERATORS[name]}
    if "kernel_size" in windows and any(
        2 * pad > kernel for pad, kernel in zip(windows["padding"], windows["kernel_size"], strict=True)
    ):
        field["padding"].refuse("at most half of kernel_size", "more")
    if name not in ("conv2d", "linear"):
        return 0
    groups = field["groups"].integer(1, _MOST_CHANNELS) if name == "conv2d" else 1
    shape, read = _check_weight(field["weight"], 4 if name == "conv2d" else 2, archive)
    if shape[0] % groups or shape[1] * groups > _MOST_CHANNELS:
        field["groups"].refuse("a divisor of the channels", groups)
    if field["bias"].value is not None:
        size, more = _check_weight(field["bias"], 1, archive)
        read += more
        if size != shape[:1]:
            field["bias"]["shape"].refuse(str(shape[0]), size[0])
    return read


OPERATORS: dict[str, tuple[str, ...]] = {
    "conv2d": ("stride", "padding", "dilation"),
    "linear": (),
    "relu": (),
    "add": (),
    "max_pool2d": ("kernel_size", "stride", "padding"),
    "avg_pool2d": ("kernel_size", "stride", "padding"),
    "avg_pool2d_ceil": ("kernel_size", "stride", "padding"),
    "adaptive_avg_pool2d": ("output_size",),
    "flatten": (),
}
"""Those that the engines have, and their attributes of two integers. A file with others runs in LibTorch."""


def _check_pair(field: _Field) -> Iterator[int]:
    for side in field.sized(2, 2, "integers"):
        yield side.integer(0 if field.path.endswith("padding") else 1, _LONGEST_WINDOW)


def _check_weight(field: _Field, rank: int, archive: Archive) -> tuple[list[int], int]:
    """Its shape and its bytes."""
    sizes = field["shape"].sized(rank, rank, "dimensions")
    shape = [
        size.integer(1, _MOST_CHANNELS if dimension < 2 else _LONGEST_WINDOW)
        for dimension, size in enumerate(sizes)
    ]
    name = field["entry"].string()
    entry = archive.entries.get(name)
    if entry is None or not entry.stored:
        field["entry"].refuse("a stored entry of the archive", f'"{name[:80]}"')
    if 4 * math.prod(shape) != entry.size:
        field["shape"].refuse(f"{entry.size} bytes, as the entry {name} has", 4 * math.prod(shape))
    crc = field["crc32"].integer(0, (1 << 32) - 1)
    if crc != entry.crc:
        field["crc32"].refuse(f"{entry.crc}, as the archive's directory states", crc)
    return shape, entry.size
