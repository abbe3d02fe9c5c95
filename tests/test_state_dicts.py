"""Reading state dicts: every container, and what is refused."""

from __future__ import annotations

import argparse
import collections
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import file_of, read_and_listen, same_tensors, small_model
from safetensors.torch import save_file

import swsl
from swsl.state_dicts import read_state_dict
from swsl.training.checkpoint import find_checkpoint

State = dict[str, Any]


class Attack:
    def __reduce__(self) -> tuple:
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("wrap", "layout"),
    [
        (wrap, layout)
        for wrap in ("plain", "state_dict", "model", "module.", "both")
        for layout in ("zip", "legacy")
    ]
    + [
        ("plain", "safetensors"),
        ("module.", "safetensors"),
    ],  # a safetensors file is flat: it has no wrappers
)
def test_every_container_reads_the_same(wrap: str, layout: str, state: dict, tmp_path: Path) -> None:
    content: dict = {f"module.{k}": v for k, v in state.items()} if wrap in ("module.", "both") else state
    if wrap in ("state_dict", "model", "both"):
        content = {"model" if wrap == "model" else "state_dict": content, "epoch": 3}
    path = tmp_path / "file.bin"  # told apart by content, not by name
    if layout == "safetensors":
        save_file({k: v.contiguous() for k, v in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    found, said = read_and_listen(path)
    assert same_tensors(found, state)
    assert len(said) == (wrap != "plain")


def cut(path: Path, keep: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


@pytest.mark.parametrize("keep", [0.001, 0.3, 0.999])
@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_truncated_files(layout: str, keep: float, state: dict, tmp_path: Path) -> None:
    if layout == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(state, path)
    else:
        path = file_of(state, tmp_path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(
        swsl.WeightsError, match=f"{re.escape(str(cut(path, keep)))}.*truncated or damaged.*again"
    ) as caught:
        read_state_dict(path)
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_are_no_state_dict(tmp_path: Path, state: dict) -> None:
    for content, found in (
        ([1, 2], "found a list"),
        ({}, "found an empty dict"),
        ({"a": 1}, "found a dict of 'a' without"),
        ({"state_dict": {"a": "b"}}, "found a dict of 'state_dict' without"),
        (torch.zeros(3), "found a Tensor"),
        (state | {"epoch": 3}, "found a int under 'epoch'"),
        (state | {5: 3}, "found a int under 5"),
        (state | {"conv1.weight": numpy.zeros(3)}, "found a numpy.*under 'conv1.weight'"),
        (
            {"net": {f"net.{key}": value for key, value in state.items()} | {"net.scale": 3}},
            "found a int under 'scale' of net/net",
        ),
    ):
        with pytest.raises(swsl.WeightsError, match=f"expected a state dict.*{found}"):
            read_state_dict(file_of(content, tmp_path))
    for data, found in ((b"", "an empty file"), (b"<html>not found</html>", "bytes b'<htm'")):
        (tmp_path / "w.pth").write_bytes(data)
        with pytest.raises(
            swsl.WeightsError, match=f"expected a .pth, .pt or .safetensors file, found {found}"
        ):
            read_state_dict(tmp_path / "w.pth")
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "w.pt"))
    with pytest.raises(swsl.WeightsError, match="is a TorchScript module, expected a state dict; .*--runner"):
        read_state_dict(tmp_path / "w.pt")
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    torch.export.save(program, tmp_path / "w.pt2")
    with pytest.raises(
        swsl.WeightsError, match="is a .pt2 or another archive, expected a state dict; .*--runner"
    ):
        read_state_dict(tmp_path / "w.pt2")


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_code_is_not_run(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = file_of({"state_dict": Attack()}, tmp_path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(
        swsl.WeightsError, match="refused, since loading it would run code .*save model.state_dict"
    ):
        read_state_dict(path)
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(swsl.WeightsError, match="would run code"):
        read_state_dict(file_of(small_model(), tmp_path))

    assert "code ran" not in capsys.readouterr().out


HIDDEN: dict[str, tuple[Callable[[], object], str]] = {
    "in a Namespace": (lambda: argparse.Namespace(lr=Attack()), "print"),
    "a program": (lambda: {"epoch": Reduced(os.system, "true")}, "posix.system|nt.system"),
    "eval as a default": (lambda: collections.defaultdict(eval), "eval"),
    "in a list": (lambda: collections.deque([Attack()]), "print"),
    "getattr": (lambda: Reduced(getattr, int, "real"), "getattr"),
    "importing": (lambda: Reduced(__import__, "os"), "__import__"),
    "numpy's reader of files": (lambda: Reduced(numpy.load, "x.npy"), "numpy.load"),
    "a class beside a harmless one": (lambda: Reduced(argparse.FileType, "w"), "argparse.FileType"),
}


class Reduced:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("kind", HIDDEN)
def test_code_beside_the_tensors_is_refused_by_name(kind: str, state: State, tmp_path: Path) -> None:
    make, culprit = HIDDEN[kind]
    path = file_of({"state_dict": state, "args": make()}, tmp_path)
    for reader in (read_state_dict, find_checkpoint):
        with pytest.raises(swsl.WeightsError, match=rf"would run code \(({culprit})\)"):
            reader(path)


def test_stand_ins_run_nothing(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the constructors of the harmless types are called."""
    path = file_of(
        {"state_dict": state, "args": argparse.Namespace(a=1), "epoch": Reduced(Path, "x")}, tmp_path
    )

    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(argparse.Namespace, "__init__", fail)
    monkeypatch.setattr(argparse.Namespace, "__setattr__", fail)
    assert same_tensors(read_and_listen(path)[0], state)
