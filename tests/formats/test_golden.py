"""The golden check: what it takes for an error, that sound models pass it, and that files which compute something else do not."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DTYPES, NAMES, rewrite_archive, seed_model, seeded_model
from torch import nn

import swsl
from swsl.deploy.export import ModelError, export_model, read_metadata, verify
from swsl.deploy.runner import Runner, build_info
from swsl.formats import golden

SMALL = swsl.PreprocessSpec((64, 64))


def test_golden_input_is_the_documented_formula() -> None:
    x = golden.golden_input((1, 3, 5, 7)).flatten().tolist()
    assert x == [(((i * 2654435761 % 2**32) >> 24) - 128) / 64 for i in range(105)]


def test_an_error_of_features_is_of_their_norm() -> None:
    expected = torch.tensor([[3.0, -4.0], [6.0, 8.0]])
    assert golden.relative_error(expected + torch.tensor([[0.0, 1.0], [0.0, 0.0]]), expected) == 0.2
    assert golden.relative_error(torch.tensor([3.0, -3.0]), expected[0]) == 0.2
    assert golden.relative_error(expected * float("nan"), expected) == float("inf")
    assert golden.relative_error(expected[0], expected) == float("inf")
    assert golden.relative_error(torch.zeros(2, 2), torch.zeros(2, 2)) == 0
    assert golden.relative_error(torch.ones(2, 2), torch.zeros(2, 2)) == float("inf")


def test_an_error_of_logits_is_of_the_sums_that_made_them() -> None:
    scale = golden.logits_scale([5.0, 2.0], [0.0, 1.0], torch.tensor([[3.0, 4.0]]))
    assert scale.tolist() == [[25.0, 11.0]]
    expected = torch.tensor([[0.0, 1e-9]])
    assert golden.logits_error(expected + torch.tensor([[0.0, 11.0]]), expected, scale) == pytest.approx(1)
    assert golden.logits_error(expected[:, :1], expected, scale) == float("inf")
    model = swsl.ResNeXt((1, 1, 1, 1), 2, 4, 2)
    with torch.no_grad():
        model.fc.weight[:] = torch.tensor([3.0, -4.0] + [0.0] * 2046)
        model.fc.bias[:] = torch.tensor([0.5, -2.0])
    assert golden.classifier_sizes(model) == ([5.0, 5.0], [0.5, 2.0])


def cancel_logits(model: swsl.ResNeXt, shape: tuple[int, int, int, int]) -> swsl.ResNeXt:
    """Takes the logits at the golden input from the biases, so that next to nothing is left of them."""
    with torch.inference_mode():
        logits = model(golden.golden_input(shape))[0]
    model.fc.bias.data -= logits.clone()
    return model


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_sound_model_passes_however_its_logits_cancel(seed: int, tmp_path: Path) -> None:
    model = cancel_logits(
        seed_model(swsl.create_model(NAMES[0], pretrained=False, num_classes=2), seed),
        (1, 3, *SMALL.input_size),
    )
    export_model(model, tmp_path / "m.pt", labels=["a", "b"], spec=SMALL)
    logits = torch.tensor(read_metadata(tmp_path / "m.pt")["golden"]["logits"])
    assert logits.abs().max() < 1e-4
    assert verify(tmp_path / "m.pt") <= golden.TOLERANCES["float32"]
    if build_info()["compiled"]:
        for dtype in DTYPES:
            info = Runner(tmp_path / "m.pt", dtype=dtype).info
            assert info.golden_error <= info.golden_tolerance == golden.TOLERANCES[dtype]


def with_entries(path: Path, target: Path, entries: dict[str, bytes]) -> None:
    """A copy of a frozen module with other bytes in these entries."""
    rewrite_archive(path, lambda name, data: entries.get(name.partition("/")[2], data), target)


def off_by_a_percent(path: Path, target: Path, layer: int, *, told: bool = True) -> None:
    """The weights of one convolution or linear layer, by its number; ``told``: the network table has their new CRC."""
    metadata = read_metadata(path)
    weight = [item["weight"] for item in metadata["network"]["operators"] if "weight" in item][layer]
    with zipfile.ZipFile(path) as archive:
        data = bytearray(archive.read(archive.namelist()[0].partition("/")[0] + "/" + weight["entry"]))
    changed = (torch.frombuffer(data, dtype=torch.float32) * 1.01).numpy().tobytes()
    if told:
        weight["crc32"] = zlib.crc32(changed)
    with_entries(path, target, {"extra/swsl.json": json.dumps(metadata).encode(), weight["entry"]: changed})


def table_without_relu(path: Path, target: Path, number: int) -> None:
    metadata = read_metadata(path)
    operators = metadata["network"]["operators"]
    place = [at for at, item in enumerate(operators) if item["operator"] == "relu"][number]
    (before,) = operators[place]["inputs"]
    del operators[place]
    numbers = [
        *range(place + 1),
        before,
        *range(place + 1, len(operators) + 1),
    ]  # of the values that there were
    for item in operators:
        item["inputs"] = [numbers[value] for value in item["inputs"]]
    for output in ("logits", "features"):
        metadata["network"][output] = numbers[metadata["network"][output]]
    with_entries(path, target, {"extra/swsl.json": json.dumps(metadata).encode()})


def script_without_relu(path: Path, target: Path, number: int) -> None:
    """In both methods."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith(".py"):
            return data
        methods = data.decode().split("  def ")
        for place in (1, 2):
            found = list(re.finditer(r"torch\.relu_\((\w+)\)", methods[place]))[number]
            methods[place] = methods[place][: found.start()] + found[1] + methods[place][found.end() :]
        return "  def ".join(methods).encode()

    rewrite_archive(path, change, target)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_computes_something_else_is_refused(name: str, tmp_path: Path) -> None:
    path, bad = tmp_path / "m.pt", tmp_path / "bad.pt"
    model = seeded_model(name)
    export_model(model, path)
    layers = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules())
    del model
    faults: list[tuple[Callable[..., None], int, bool]] = [  # and whether every dtype is tried
        (off_by_a_percent, layers // 3, True),
        (table_without_relu, 0, False),
        (script_without_relu, layers // 2, False),
        (off_by_a_percent, layers - 1, False),
    ]
    for fault, place, runs in faults:
        fault(path, bad, place)
        way = "in TorchScript" if fault is script_without_relu else "by its network table"
        with pytest.raises(
            ModelError,
            match=rf"bad\.pt: (its (features|logits) are .* from those recorded at export when run {way}|"
            "swsl.json inside it: golden.weight_norms and golden.biases of class 0 are not those of its classifier)",
        ):
            verify(bad)
        for dtype in DTYPES if runs and build_info()["compiled"] else ():
            with pytest.raises(
                ModelError, match=r"bad\.pt: golden check failed in float32 on cpu: features off by"
            ):
                Runner(bad, dtype=dtype)


def test_weights_that_the_table_does_not_know_are_refused_before_they_run(tmp_path: Path) -> None:
    path, bad = tmp_path / "m.pt", tmp_path / "bad.pt"
    export_model(seed_model(swsl.ResNeXt((1, 1, 1, 1), 1, 4, 2)), path, labels="ab", spec=SMALL)
    off_by_a_percent(path, bad, 3, told=False)
    for reader in (verify, *([Runner] if build_info()["compiled"] else [])):
        with pytest.raises(ModelError, match=r'bad\.pt: .*operators\[\d+\]\.weight\.crc32": expected \d+'):
            reader(bad)
