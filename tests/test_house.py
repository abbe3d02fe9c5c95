"""The plan of the house (docs/architecture.md): folders of few files, short files, and arrows that go one way between them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

# Each package imports those before it alone. "" is the top level, less its two doors.
ORDER = ("system", "", "formats", "deploy", "bulk", "evaluation", "serving", "training", "cli")
DOORS = ("__init__.py", "__main__.py")
# Likewise of cpp/src, where each room includes those before it alone.
CPP_ORDER = ("threads", "image", "resample", "model", "engine", "run", "libtorch")
MOST_FILES, MOST_LINES = 14, 400


def folders_of(house: Path) -> Iterator[Path]:
    """The packages, and so none of what a build leaves between them."""
    return (path.parent for path in house.rglob("__init__.py"))


def room_of(module: list[str]) -> str:
    """The package of swsl that a module is in, from the parts of its name after ``swsl``."""
    return module[0] if module and module[0] in ORDER else ""


def imported(file: Path, house: Path) -> Iterator[str]:
    """The package of each import of swsl in a file, wherever it stands there."""
    inside = list(file.relative_to(house).parent.parts)
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ["swsl", *inside][: len(inside) + 2 - node.level] if node.level else []
            start += node.module.split(".") if node.module else []
            names = [[*start, alias.name] for alias in node.names]
        else:
            continue
        yield from (room_of(name[1:]) for name in names if name[0] == "swsl")


def turned_arrows(house: Path) -> list[str]:
    """The imports of a package by one that stands before it."""
    return [
        f"{file.relative_to(house)} imports {room or 'the top level'}"
        for file in sorted(house.rglob("*.py"))
        if file.parent != house or file.name not in DOORS
        for room in imported(file, house)
        if ORDER.index(room) > ORDER.index(room_of(list(file.relative_to(house).parts)))
    ]


def test_folders_are_small_and_files_are_short() -> None:
    for folder in folders_of(ROOT / "swsl"):
        files = [path for path in folder.iterdir() if path.is_file() and path.stat().st_size]
        assert len(files) <= MOST_FILES, f"{folder}: {len(files)} files; give some of them a folder"
    for house in ("swsl", "tests", "benchmarks"):
        for path in (ROOT / house).rglob("*.py"):
            lines = path.read_text("utf-8").count("\n")
            assert lines <= MOST_LINES, f"{path}: {lines} lines; it is more than one thing"


def test_imports_between_packages_go_one_way() -> None:
    assert {folder.relative_to(ROOT / "swsl").as_posix() for folder in folders_of(ROOT / "swsl")} == {
        name or "." for name in ORDER
    }
    assert turned_arrows(ROOT / "swsl") == []


@pytest.mark.parametrize(
    ("file", "line", "room"),
    [
        ("deploy/runner.py", "from ..bulk.rows import csv_row", "bulk"),
        ("deploy/runner.py", "def f():\n    import swsl.training.train", "training"),
        ("bulk/rows.py", "if TYPE_CHECKING:\n    from swsl.cli import main", "cli"),
        ("evaluation/probe.py", "from .. import cli", "cli"),
        ("weights.py", "from .deploy import export", "deploy"),
        ("weights.py", "from . import deploy", "deploy"),
        ("system/files.py", "from ..image import ImageError", "the top level"),
        ("system/files.py", "import swsl", "the top level"),
    ],
)
def test_a_turned_arrow_is_found(file: str, line: str, room: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"import os\nfrom .neighbour import x\n{line}\n")
    assert turned_arrows(tmp_path) == [f"{file} imports {room}"]


def turned_includes(source: Path) -> list[str]:
    """The includes of a room of cpp/src by one that stands before it."""
    return [
        f"{file.relative_to(source)} includes {room}"
        for file in sorted([*source.rglob("*.h"), *source.rglob("*.cpp"), *source.rglob("*.cu")])
        for room in re.findall(r'^#include "(\w+)/', file.read_text("utf-8"), re.MULTILINE)
        if CPP_ORDER.index(room) > CPP_ORDER.index(file.relative_to(source).parts[0])
    ]


def test_rooms_of_cpp_are_small_and_include_one_way(tmp_path: Path) -> None:
    source = ROOT / "cpp" / "src"
    assert {path.name for path in source.iterdir()} == set(CPP_ORDER)
    assert turned_includes(source) == []
    for folder in (ROOT / "cpp", *(path for path in (ROOT / "cpp").rglob("*") if path.is_dir())):
        files = [path for path in folder.iterdir() if path.is_file()]
        assert len(files) <= MOST_FILES, f"{folder}: {len(files)} files; give some of them a folder"
        for path in files:
            lines = path.read_text("utf-8").count("\n")
            assert lines <= MOST_LINES, f"{path}: {lines} lines; it is more than one thing"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "json.h").write_text(
        '#include <string>\n#include "model/x.h"\n#include "run/cores.h"\n'
    )
    assert turned_includes(tmp_path) == ["model/json.h includes run"]


def test_the_core_knows_neither_torch_nor_python() -> None:
    for folder in ("include/swsl", "src"):
        for file in (ROOT / "cpp" / folder).rglob("*.*"):
            if "libtorch" not in file.parts:
                found = re.search(
                    r"^#include <(ATen|c10|torch|pybind11|Python)", file.read_text("utf-8"), re.MULTILINE
                )
                assert found is None, f"{file}: {found and found[0]}"
