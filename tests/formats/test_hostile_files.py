"""Whatever is wrong with a frozen module, each reader says so by a ModelError that names it, in little time and memory."""

from __future__ import annotations

import contextlib
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import Case, cases
from small_file import sound_file

from swsl.deploy.export import ModelError, read_metadata, verify
from swsl.deploy.frozen import FrozenRunner
from swsl.deploy.runner import Runner, build_info
from swsl.formats.golden import golden_input
from swsl.formats.network_table import run_table

READERS = [read_metadata, verify, FrozenRunner, *([Runner] if build_info()["compiled"] else [])]
Reader = Callable[[Path], Any]


@pytest.fixture(scope="module", params=[".pt", ".pt2"])
def every(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return cases(tmp_path_factory.mktemp("hostile") / f"sound{request.param}")


def complaint(reader: Reader, case: Case, path: Path) -> str | None:
    """What is wrong with the reader's answer."""
    path.write_bytes(case.make())
    right = case.reads if reader is read_metadata else case.runs
    if reader is verify and case.reads and b"constants.pkl" in path.read_bytes():
        right = None  # its TorchScript is cut
    if reader is FrozenRunner and case.reads:
        right = None  # likewise, and it makes no golden check
    try:
        reader(path)
    except ModelError as error:
        if not str(error).startswith(f"{path}: "):
            return f"{case.name}: does not open with the name: {str(error)[:200]}"
        return f"{case.name}: refused: {str(error)[:200]}" if right else None
    except Exception as error:
        return f"{case.name}: {type(error).__name__} {str(error)[:200]}"
    return f"{case.name}: taken" if right is False else None


def complaints(reader: Reader, some: list[Case], folder: Path) -> list[str]:
    return [found for case in some if (found := complaint(reader, case, folder / "m.pt"))]


@pytest.mark.parametrize("reader", READERS)
def test_some_faulty_files_are_refused(reader: Reader, every: list[Case], tmp_path: Path) -> None:
    assert complaints(reader, every[:: len(every) // 60], tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_all_faulty_files_are_refused(reader: Reader, every: list[Case], tmp_path: Path) -> None:
    assert len(every) >= 448
    assert complaints(reader, every, tmp_path) == []


COSTLY = (
    "swsl.json: 4 MiB of texts",
    "swsl.json: 300,000 different keys",
    "archive: 9,000 operators",
    "archive: bomb: swsl.json",
    "archive: 10,001 entries",
)


@pytest.mark.slow
def test_a_faulty_file_costs_little_memory(every: list[Case], tmp_path: Path) -> None:
    by_name = {case.name: case for case in every}
    for name in COSTLY:
        (tmp_path / "m.pt").write_bytes(by_name[name].make())
        tracemalloc.start()
        try:
            with contextlib.suppress(ModelError):
                read_metadata(tmp_path / "m.pt")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 100e6, f"{name}: {peak / 1e6:.0f} MB"


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_named(reader: Reader, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    (tmp_path / "lost.pt").symlink_to("nowhere.pt")
    (tmp_path / "file").touch()
    for name in ("pipe.pt", "folder.pt", "loop.pt", "lost.pt", "nowhere.pt", "file/m.pt", "x" * 300):
        with pytest.raises(ModelError) as caught:
            reader(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_may_not_be_read_is_named(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"")
    (tmp_path / "m.pt").chmod(0)
    with pytest.raises(ModelError, match=r"m\.pt: cannot be read \(Permission denied\)"):
        reader(tmp_path / "m.pt")


def test_the_table_of_the_sound_file_computes_its_golden_outputs(tmp_path: Path) -> None:
    """So that what the faulty files are made of is sound but for their faults."""
    (tmp_path / "m.pt").write_bytes(sound_file(tmp_path / "exported.pt"))
    golden = read_metadata(tmp_path / "m.pt")["golden"]
    logits, features = run_table(tmp_path / "m.pt", golden_input(golden["shape"]))
    assert torch.allclose(logits[0], torch.tensor(golden["logits"]), rtol=1e-5, atol=1e-6)
    assert torch.allclose(features[0], torch.tensor(golden["features"]), rtol=1e-5, atol=1e-6)
