"""Faulty frozen modules of more kinds than anybody would think of one by one, all made of one sound file."""

from __future__ import annotations

import copy
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from small_file import RAW, small_file, with_json
from zip_records import Item, Items, pack

MISSING = object()


@dataclass(frozen=True)
class Case:
    """A file. Whether `read_metadata` has to take it, and whether a runner has to: None where either is right. Whatever refuses
    it does so by a ModelError that opens with its name."""

    name: str
    make: Callable[[], bytes]
    reads: bool | None = False
    runs: bool | None = False


def cases(path: Path) -> list[Case]:
    """All of them. An exported file is written to ``path`` on the way."""
    items, metadata = small_file(path)
    every = [*_fields(items, metadata), *_texts(items, metadata), *_archives(items, metadata)]
    every += _damages(pack(with_json(items, metadata), zip64={}))
    assert len({case.name for case in every}) == len(every)
    return every


# Metadata: each field in turn.

VALUES: dict[str, Any] = {
    "missing": MISSING,
    "null": None,
    "true": True,
    "text": "x",
    "long text": "x" * 100_000,
    "minus one": -1,
    "zero": 0,
    "one": 1,
    "a half": 0.5,
    "huge": 1 << 62,
    "minus huge": -(1 << 62),
    "more than 64 bits": 10**30,
    "too large for float32": 1e308,
    "too large for a double": RAW + "1e400",
    "infinite": RAW + "Infinity",
    "minus infinite": RAW + "-Infinity",
    "not a number": RAW + "NaN",
    "an empty array": [],
    "an empty object": {},
    "nested": json.loads("[" * 50 + "]" * 50),
    "nested too deep": RAW + "[" * 80 + "]" * 80,
    "in an array": ...,
}


def _fields(items: Items, metadata: dict[str, Any]) -> Iterator[Case]:
    for place in _places(metadata):
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)[1:]
        before = _at(metadata, place)
        for kind, value in VALUES.items():
            changed = [before] if value is ... else value
            if type(changed) is type(before) and changed == before:
                continue

            def make(place: tuple[Any, ...] = place, changed: Any = changed) -> bytes:
                other = copy.deepcopy(metadata)
                parent = _at(other, place[:-1])
                if changed is MISSING:
                    del parent[place[-1]]
                else:
                    parent[place[-1]] = changed
                return pack(with_json(items, other), zip64={})

            yield Case(f"{path}: {kind}", make, *_verdict(path, changed))


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of all members; of numbers and texts in arrays, only of the first and the last."""
    if before:
        yield before
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _places(member, (*before, key))
    if isinstance(value, list):
        plain = not isinstance(value[0], dict)
        for index in sorted({0, len(value) - 1}) if plain else range(len(value)):
            yield from _places(value[index], (*before, index))


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not value.startswith(RAW)


def _is_number(value: Any, least: float = -3e38, most: float = 3e38) -> bool:
    return type(value) in (int, float) and least <= value <= most


OPERATOR = r"network\.operators\[(?P<at>\d)\]\."
ALLOWED: list[tuple[str, Callable[[Any, int], bool], bool | None]] = [
    # What says who made the file, and what its classes are called, may be any text.
    (r"variant|license|weights_sha256", lambda value, _: value is None or _is_text(value), True),
    (r"labels\[\d+\]|fingerprint|versions\.\w+", lambda value, _: _is_text(value), True),
    # Of another network than ours.
    (r"architecture\.(layers|groups|width_per_group)", lambda value, _: value is None, True),
    # Another preprocessing is another model, but a sound one.
    (r"preprocess\.crop_pct", lambda value, _: _is_number(value, 0.01, 1), True),
    (r"preprocess\.mean\[\d\]", lambda value, _: _is_number(value), True),
    (r"preprocess\.std\[\d\]", lambda value, _: _is_number(value, 1e-9), True),
    # The golden check fails, as it computes.
    (r"golden\.(features|logits)\[\d+\]", lambda value, _: _is_number(value), False),
    (r"golden\.features\[\d+\]", lambda value, _: value is MISSING, False),
    (OPERATOR + r"(stride|padding)\[\d\]", lambda value, _: value == 1 and type(value) is int, False),
    (OPERATOR + r"padding\[\d\]", lambda value, _: value == 0 and type(value) is int, False),
    (OPERATOR + r"bias", lambda value, _: value is None, False),
    (OPERATOR + r"inputs\[0\]", lambda value, at: type(value) is int and 0 <= value <= at, False),
    (r"network\.(logits|features)", lambda value, _: type(value) is int and 0 <= value <= 6, False),
    # By how much it fails is a matter of these.
    (r"golden\.(weight_norms|biases)\[\d+\]", lambda value, _: _is_number(value, 0), None),
    # For LibTorch to run.
    (OPERATOR + r"operator", lambda value, _: _is_text(value), None),
]
"""Where a change of a field leaves a file that can be read, and whether it then runs."""


def _verdict(path: str, value: Any) -> tuple[bool | None, bool | None]:
    for pattern, allowed, runs in ALLOWED:
        found = re.fullmatch(pattern, path)
        if found and allowed(value, int(found.groupdict().get("at", 0))):
            return True, runs
    return False, False


# Metadata: its text as a whole.


def _texts(items: Items, metadata: dict[str, Any]) -> Iterator[Case]:
    text = json.dumps(metadata).encode()
    limit = 4 << 20
    texts: dict[str, tuple[Callable[[], bytes], bool]] = {
        "nothing": (lambda: b"", False),
        "a space": (lambda: b" ", False),
        "null": (lambda: b"null", False),
        "a number": (lambda: b"1", False),
        "an array": (lambda: b"[" + text + b"]", False),
        "no JSON": (lambda: b"swsl", False),
        "cut": (lambda: text[:-1], False),
        "cut in half": (lambda: text[: len(text) // 2], False),
        "more behind": (lambda: text + b"x", False),
        "twice": (lambda: text * 2, False),
        "NUL behind": (lambda: text + b"\0", False),
        "a comma too many": (lambda: text[:-1] + b",}", False),
        "a comment": (lambda: b"/**/" + text, False),
        "quoted by apostrophes": (lambda: text.replace(b'"', b"'"), False),
        "byte order mark": (lambda: b"\xef\xbb\xbf" + text, False),
        "UTF-16": (lambda: text.decode().encode("utf-16"), False),
        "Latin-1": (lambda: text.replace(b'"one"', b'"\xf6"'), False),
        "overlong UTF-8": (lambda: text.replace(b'"one"', b'"\xc0\xaf"'), False),
        "a surrogate in UTF-8": (lambda: text.replace(b'"one"', b'"\xed\xa0\x80"'), False),
        "half a surrogate pair": (lambda: text.replace(b'"one"', b'"\\ud800"'), False),
        "an unknown escape": (lambda: text.replace(b'"one"', b'"\\x41"'), False),
        "a control character": (lambda: text.replace(b'"one"', b'"a\nb"'), False),
        "a key twice": (lambda: text[:-1] + b',"format":3}', False),
        "a key twice, deep": (lambda: text.replace(b'"swsl":', b'"swsl":"1","swsl":'), False),
        "unknown preprocessing": (lambda: text.replace(b'"crop_pct":', b'"pad":1,"crop_pct":'), False),
        "NaN in an unknown key": (lambda: text[:-1] + b',"more":NaN}', False),
        "an unknown key": (lambda: text[:-1] + b',"more":{"a":[1]}}', True),
        "spaces": (lambda: text + b" " * 1000, True),
        "a label of a megabyte": (lambda: text.replace(b'"one"', b'"%s"' % (b"x" * (1 << 20))), True),
        "UTF-8": (lambda: text.replace(b'"one"', '"中"'.encode()), True),
        "just not too long": (lambda: text + b" " * (limit - len(text)), True),
        "too long": (lambda: text + b" " * (limit + 1 - len(text)), False),
        "far too long": (lambda: text + b" " * (4 * limit), False),
        "arrays in arrays": (lambda: b"[" * 100_000 + b"]" * 100_000, False),
        "arrays without an end": (lambda: b"[" * limit, False),
        "objects in objects": (lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000, False),
        "deep in an unknown key": (lambda: text[:-1] + b',"more":%s%s}' % (b"[" * 99, b"]" * 99), False),
        "deep without numbers": (lambda: b'[{"":' * 100_000, False),
    }
    many = {"arrays": b"[],", "objects": b"{},", "texts": b'"",', "numbers": b"1,", "long numbers": b"1e300,",
            "pairs": b'"a":1,', "escapes": b'"\\"",', "numbers of 5,000 digits": b"1" * 5000 + b","}  # fmt: skip
    for what, one in many.items():

        def make(one: bytes = one) -> bytes:
            room = limit - len(text) - 20
            return text[:-1] + b',"more":[' + one * (room // len(one)) + b"0]}"

        texts[f"4 MiB of {what}"] = (make, what == "numbers of 5,000 digits" and False)
    texts["4 MiB of digits"] = (
        lambda: text[:-1] + b',"more":' + b"1" * (limit - len(text) - 20) + b"}",
        False,
    )
    texts["4 MiB of quotes"] = (lambda: b'"' * limit, False)
    texts["4 MiB of backslashes"] = (lambda: b'"' + b"\\" * (limit - 1), False)
    texts["4 MiB of escaped quotes"] = (lambda: b'"' + b'\\"' * (limit // 2 - 1), False)
    texts["4 MiB of a key"] = (lambda: b'{"%s":1' % (b"k" * (limit - 10)), False)
    texts["300,000 different keys"] = (
        lambda: text[:-1] + b"," + b",".join(b'"%x":1' % number for number in range(300_000)) + b"}",
        False,
    )
    for name, (make_text, right) in texts.items():

        def make_file(make_text: Callable[[], bytes] = make_text) -> bytes:
            return pack([Item(b"m/extra/swsl.json", make_text()), *items], zip64={})

        yield Case(f"swsl.json: {name}", make_file, right, right)


# The archive: names, headers, sizes, what its end says.


def _archives(items: Items, metadata: dict[str, Any]) -> Iterator[Case]:
    sound = with_json(items, metadata)
    places = {item.name.decode(): number for number, item in enumerate(sound)}
    json_at, weight_at = 0, places["m/" + metadata["network"]["operators"][0]["weight"]["entry"]]
    weight = sound[weight_at]
    other = bytes(len(weight.data))

    def changed(at: int, **values: Any) -> Items:
        return [replace(item, **values) if number == at else item for number, item in enumerate(sound)]

    def plus(*more: Item) -> Items:
        return [*sound, *more]

    made: dict[str, Any] = {}
    names = {
        "absolute": b"/etc/passwd", "up": b"../x", "up inside": b"m/../x", "here": b"m/./x", "two slashes": b"m//x",
        "a folder": b"m/x/", "none": b"", "a slash": b"/", "a backslash": b"m/a\\b", "NUL": b"m/a\0b", "no UTF-8": b"m/\xff",
        "long": b"m/" + b"x" * 2000, "another folder": b"n/x", "no folder": b"x", "a folder's start": b"mm/x",
    }  # fmt: skip
    for what, name in names.items():
        made[f"name: {what}"] = plus(Item(name, b"x"))
        made[f"name of the first: {what}"] = changed(json_at, name=name)
    for what, at in {"swsl.json": json_at, "weights": weight_at}.items():
        made[f"{what}: deflated"] = changed(at, method=8)
        made[f"{what}: deflated, called stored by the directory"] = changed(at, local_method=8)
        made[f"{what}: method 99"] = changed(at, method=99)
        made[f"{what}: encrypted"] = changed(at, flags=1)
        made[f"{what}: packed a byte more"] = changed(at, packed=len(sound[at].data) + 1)
        made[f"{what}: a byte less"] = changed(at, size=len(sound[at].data) - 1)
        made[f"{what}: 4 GiB"] = changed(at, size=0xFFFFFFFF, packed=0xFFFFFFFF)
        made[f"{what}: longer than the file"] = changed(at, size=10**8, packed=10**8)
        made[f"{what}: into the next"] = changed(
            at, size=len(sound[at].data) + 50, packed=len(sound[at].data) + 50
        )
        made[f"{what}: wrong CRC"] = changed(at, crc=123)
        made[f"{what}: comes twice"] = plus(sound[at])
        made[f"{what}: comes twice, the same bytes"] = plus(replace(sound[at], offset=0))
        made[f"{what}: another name in its header"] = changed(at, local_name=sound[at].name[:-1] + b"x")
        made[f"{what}: a shorter name in its header"] = changed(at, local_name=sound[at].name[:-1])
        made[f"{what}: no header"] = changed(at, local_signature=b"PK\1\2")
        for offset in (1, 10**6, 10**9, 0xFFFFFFFF, 0xFFFFFFE0):
            made[f"{what}: at {offset}"] = changed(at, offset=offset)
    made["an entry inside another"] = _nested(sound)
    made["an entry that ends in the directory"] = plus(Item(b"m/x", b"x", size=9, packed=9))
    made["weights: at another entry"] = changed(weight_at, offset=0)
    made["swsl.json: emptied"] = changed(json_at, data=b"")
    made["without swsl.json"] = sound[1:]
    made["swsl.json in another folder"] = changed(json_at, name=b"m/swsl.json")
    made["bomb: swsl.json"] = [
        Item(b"m/extra/swsl.json", json.dumps(metadata).encode() + b" " * (32 << 20), method=8), *items
    ]  # fmt: skip
    made["bomb: code"] = plus(Item(b"m/code/bomb.py", bytes(32 << 20), method=8))
    made["bomb: code that says it is small"] = plus(
        Item(b"m/code/bomb.py", bytes(32 << 20), method=8, size=1000)
    )
    made["bomb: not code"] = plus(Item(b"m/data/bomb", bytes(32 << 20), method=8))
    made["10,001 entries"] = [*sound, *(Item(b"m/%d" % number, b"") for number in range(10_001 - len(sound)))]
    made["one of its entries for all"] = [
        *sound, *(Item(b"m/x%d" % number, b"", offset=0, local_name=b"") for number in range(3))
    ]  # fmt: skip
    for what, build in made.items():
        runs = what == "bomb: code that says it is small"  # nobody here unpacks it
        yield Case(f"archive: {what}", lambda build=build: pack(build, zip64={}), runs, runs)

    yield Case(
        "archive: weights changed",
        lambda: pack(changed(weight_at, data=other, crc=zlib.crc32(weight.data))),
        True,
    )

    def other_weights() -> bytes:
        told = copy.deepcopy(metadata)
        told["network"]["operators"][0]["weight"]["crc32"] = zlib.crc32(other)
        return pack([with_json(items, told)[0], *changed(weight_at, data=other)[1:]])

    yield Case("archive: other weights", other_weights, True)
    for what, change in {
        "three groups of 64 channels": {"groups": 3},
        "the bias of another": {"bias": metadata["network"]["operators"][-1]["bias"]},
    }.items():
        told = copy.deepcopy(metadata)
        told["network"]["operators"][0].update(change)
        yield Case(f"network: {what}", lambda told=told: pack(with_json(items, told), zip64={}))
    shared = copy.deepcopy(metadata)
    first = shared["network"]["operators"][0]
    shared["network"]["operators"][0:0] = [{**first, "inputs": [0]}] * 900
    yield Case("archive: weights read 900 times", lambda: pack(with_json(items, shared), zip64={}))
    many = copy.deepcopy(metadata)
    one = {"entry": "one", "shape": [1, 1, 1, 1], "crc32": zlib.crc32(bytes(4))}
    pairs = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
    small = {"operator": "conv2d", "inputs": [0], **pairs, "groups": 1, "weight": one, "bias": None}
    many["network"]["operators"] = [small] * 9_000
    many["network"]["logits"] = 9_000
    yield Case("archive: 9,000 operators", lambda: pack([*with_json(items, many), Item(b"m/one", bytes(4))]))

    good = lambda **options: lambda: pack(sound, **options)  # noqa: E731
    yield Case("sound", good(zip64={}), True, True)
    yield Case("sound: without records for large files", good(), True, True)
    yield Case("sound: padded", lambda: pack(changed(1, padding=60)), True, True)
    for field in ("disk", "first_disk", "here", "count", "length", "begin", "comment"):
        for change in (1, -1, 100, 30_000):
            if change > 0 or field in ("here", "count", "length", "begin"):
                yield Case(f"end: {field} {change:+}", good(**{field: change}))
                yield Case(f"end: {field} {change:+}, with 64 bits", good(zip64={}, **{field: change}))
    fewer = {"here": -1, "count": -1}
    yield Case("end: an entry less", good(**fewer))
    yield Case("end: an entry less, with 64 bits", good(zip64={6: -1, 7: -1}, **fewer))
    yield Case("file: a header in front, which its offsets count", good(zip64={}, front=b"#!/bin/sh\nexit\n"))
    yield Case("end: no entries", lambda: pack([]))
    yield Case("end: no entries, with 64 bits", lambda: pack([], zip64={}))
    for number in (0, 1, 7, 8, 9, 12):
        for change in (1, 1 << 30):
            yield Case(
                f"end: field {number} of the records for large files {change:+}", good(zip64={number: change})
            )


def _nested(sound: Items) -> Items:
    inner = Item(b"m/inner", b"x")
    record = pack([inner])
    outer = Item(b"m/outer", record[: record.index(b"PK\1\2")])
    before = pack(sound).index(b"PK\1\2")
    return [*sound, outer, replace(inner, offset=before + 30 + len(outer.name), hidden=True)]


# The file: cut, doubled, damaged.


def _damages(sound: bytes) -> Iterator[Case]:
    size = len(sound)
    for part in range(40):
        yield Case(f"file: cut to {part}/40", lambda part=part: sound[: size * part // 40])
    for less in (1, 2, 10, 21, 22, 23, 42, 43, 98, 99, 200):
        yield Case(f"file: cut by {less}", lambda less=less: sound[:-less])
        yield Case(f"file: {less} bytes missing in front", lambda less=less: sound[less:])
        yield Case(f"file: {less} bytes in front", lambda less=less: bytes(less) + sound)
        yield Case(f"file: {less} bytes behind", lambda less=less: sound + bytes(less))
    yield Case("file: doubled", lambda: sound * 2)
    yield Case("file: doubled apart", lambda: sound + bytes(1000) + sound)
    yield Case("file: two ends", lambda: sound + sound[-22:])
    yield Case("file: an end alone", lambda: sound[-22:])
    yield Case("file: zeros", lambda: bytes(size))
    yield Case("file: text", lambda: b"a photo\n" * 100)
    yield Case("file: JPEG", lambda: b"\xff\xd8\xff\xe0" + bytes(500))
    yield Case("file: gzip", lambda: zlib.compressobj(9, 8, 31).compress(sound) + b"x" * 100)
    yield Case("file: a header in front", lambda: b"#!/bin/sh\nexit\n" + sound)
    rng = random.Random(0)
    for number in range(120):
        at = rng.randrange(size) if number % 2 else size - 1 - rng.randrange(700)
        bit = 1 << rng.randrange(8)
        # May have hit what nobody reads.
        yield Case(
            f"file: bit {bit} of byte {at} turned, {number}",
            lambda at=at, bit=bit: sound[:at] + bytes([sound[at] ^ bit]) + sound[at + 1 :],
            None,
            None,
        )
