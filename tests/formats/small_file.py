"""A sound frozen module in 60 KB, for tests that make thousands of files of one."""

from __future__ import annotations

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from conftest import seed_model
from torch.nn import functional
from zip_records import Item, Items, pack

import swsl
from swsl.deploy.export import export_model
from swsl.formats.archive import Archive
from swsl.formats.golden import classifier_sizes, golden_input
from swsl.formats.metadata import open_frozen

RAW = "@raw@"


def small_file(path: Path) -> tuple[Items, dict[str, Any]]:
    """The entries and the metadata of an exported file whose network has been cut behind its first pool, so that thousands of
    its kind take seconds: a .pt or, if ``path`` ends so, a .pt2. A runner on a CPU takes it."""
    model = seed_model(swsl.ResNeXt((1, 1, 1, 1), 1, 1, 2))
    export_model(model, path, spec=swsl.PreprocessSpec((32, 32)), labels=["one", "zwölf"])
    metadata, archive = open_frozen(path)
    model.fc = torch.nn.Linear(64, 2)
    seed_model(model.fc)
    table, golden = metadata["network"], metadata["golden"]
    operators = [*table["operators"][:3], *table["operators"][-3:]]
    for number, operator in enumerate(operators):
        operator["inputs"] = [number]
    kinds = ["conv2d", "relu", "max_pool2d", "adaptive_avg_pool2d", "flatten", "linear"]
    assert [operator["operator"] for operator in operators] == kinds
    first, last = operators[0], operators[-1]
    kept = {first[part]["entry"] for part in ("weight", "bias")} | {"version", "byteorder", "constants.pkl"}
    kept |= {"archive_format", "archive_version", "data/sample_inputs/model.pt"}
    contents = {name: bytes(_raw(archive, name)) for name in archive.entries if name in kept}
    weight, bias = (
        torch.frombuffer(bytearray(contents[first[part]["entry"]]), dtype=torch.float32).view(
            first[part]["shape"]
        )
        for part in ("weight", "bias")
    )
    with torch.inference_mode():
        x = functional.conv2d(golden_input(golden["shape"]), weight, bias, 2, 3).relu()
        features = functional.max_pool2d(x, 3, 2, 1).mean((2, 3))
        logits = model.fc(features)
    for part in ("weight", "bias"):
        values = model.fc.get_parameter(part).detach()
        data = b"".join(struct.pack("<f", value) for value in values.flatten().tolist())
        contents[last[part]["entry"]] = data
        last[part].update(shape=list(values.shape), crc32=zlib.crc32(data))
    golden["features"], golden["logits"] = features[0].tolist(), logits[0].tolist()
    golden["weight_norms"], golden["biases"] = classifier_sizes(model)
    metadata["network"] = {"operators": operators, "logits": 6, "features": 5}
    items = [Item(b"m/" + name.encode(), data) for name, data in contents.items()]
    return [*items, Item(b"m/code/model.py", b"pass\n" * 1000, method=8)], metadata


def _raw(archive: Archive, name: str) -> memoryview:
    entry = archive.entries[name]
    return archive.bytes[entry.offset : entry.offset + entry.size]


def with_json(items: Items, metadata: object) -> Items:
    """Numbers that Python would not write stand in strings that begin with `RAW`."""
    text = re.sub(rf'"{RAW}([^"]*)"', r"\1", json.dumps(metadata))
    return [Item(b"m/extra/swsl.json", text.encode()), *items]


def sound_file(path: Path) -> bytes:
    return pack(with_json(*small_file(path)), zip64={})
