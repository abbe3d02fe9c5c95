"""Names that are no UTF-8, in every output and in what is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import subprocess_environment
from output_runs import (
    FEATURES,
    OUTPUTS,
    Killed,
    fill,
    paths_and_errors,
)

from swsl.bulk.rows import written_name
from swsl.image import ImageError
from swsl.prediction import Prediction, Result

NAMES = [
    b"\xff.jpg", b'caf\xe9, "1".jpg', b"\xe2\x82.jpg", b"\xed\xa0\x80\xc0\xaf\xf4\x90\x80\x80.jpg", b"\xc3\xa9\xf0\x9f\x98\x80.jpg",
    b"\\xff\\x5c\\x5\\xFF\\.jpg", b"\\\xff\\x4\xff.jpg", b"a\nb\rc\td\x01\x7f.jpg", b" =1+1.jpg", "\u2028\u0085.jpg".encode(),
]  # fmt: skip


def read_back(text: str) -> str:
    """As swsl/bulk/rows.py documents it."""
    return os.fsdecode(
        re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())
    )


def test_names_are_written_as_utf8_and_come_back() -> None:
    assert written_name(os.fsdecode(b"\xff.jpg")) == r"\xff.jpg"
    assert written_name("C:\\a\\b\\x41\0") == r"C:\a\b\x5cx41\x00"
    assert written_name("https://a/ü%20?b=\\xz") == "https://a/ü%20?b=\\xz"
    pairs = [bytes([i, j]) for i in range(256) for j in (0x0A, 0x5C, 0x78, 0x80, 0xA0, 0xBF, 0xC3, 0xFF)]
    for name in map(os.fsdecode, [*NAMES, *pairs]):
        text = written_name(name)
        text.encode()
        assert read_back(text) == name


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_keeps_every_row_whatever_its_name(name: str, tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in NAMES]
    bad = names[::3]

    def result(path: str) -> Result:
        if path in bad:
            return Result(path, error=ImageError(f"{path}: truncated"))
        return Result(path, [Prediction("a", 1, 0.5)], embedding=torch.ones(FEATURES), logits=torch.ones(2))

    with pytest.raises(Killed):
        fill(tmp_path, name, names, result, stop_at=8)
    assert not fill(tmp_path, name, names, result)
    assert fill(tmp_path, name, names, result)
    paths, errors = paths_and_errors(tmp_path / name)
    assert [read_back(path) for path in paths] == names
    assert [bool(error) for error in errors] == [path in bad for path in names]


@pytest.fixture
def odd_names(tmp_path: Path, photo: Path) -> Path:
    folder = tmp_path / "odd names"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        content = b"no image" if number % 3 == 0 else photo.read_bytes()
        try:
            Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
        except OSError:
            pytest.skip("this file system takes only UTF-8 names")
    return folder


@pytest.mark.slow
def test_commands_take_any_name(odd_names: Path, tmp_path: Path, tiny: list[str]) -> None:
    paths = [str(odd_names / name) for name in sorted(map(os.fsdecode, NAMES), key=os.fsencode)]
    one_line = [path for path in paths if "\n" not in path]
    listed = "".join(f"{path}\n" for path in one_line).encode("utf-8", "surrogateescape")
    for name, command, inputs, stdin, expected in (
        ("out.csv", "classify", "-", listed, one_line),
        ("out.jsonl", "classify", str(odd_names), b"", paths),
        ("out.parquet", "classify", "-", listed, one_line),
        ("out.npy", "embed", str(odd_names), b"", paths),
    ):
        output = os.path.join(tmp_path, os.fsdecode(b"\xff") + name)
        done = swsl_command([command, inputs, *tiny, "-o", output], stdin)
        assert done.returncode == 1, done.stderr
        assert done.stderr.count(b"swsl: error: ") == sum(map(is_bad, expected))
        read, errors = paths_and_errors(Path(output))
        assert [read_back(path) for path in read] == expected
        assert [bool(error) for error in errors] == list(map(is_bad, expected))
    assert swsl_command(["embed", inputs, *tiny, "-o", output, "--resume"]).stderr.endswith(
        b"out.npy is complete\n"
    )


def is_bad(path: str) -> bool:
    """Of the images in `odd_names`."""
    return NAMES.index(os.fsencode(Path(path).name)) % 3 == 0


def test_printed_rows_are_utf8_whatever_the_terminal(
    odd_names: Path, tmp_path: Path, tiny: list[str]
) -> None:
    for style, name in (("csv", "out.csv"), ("json", "out.jsonl")):
        done = swsl_command(["classify", str(odd_names), *tiny, "--format", style])
        (tmp_path / name).write_bytes(done.stdout)
        paths, _ = paths_and_errors(tmp_path / name)
        assert sorted(os.fsencode(Path(read_back(path)).name) for path in paths) == sorted(NAMES)
    table = swsl_command(["classify", str(odd_names), *tiny])
    assert table.stdout.count(b".jpg") == sum(not is_bad(os.fsdecode(name)) for name in NAMES)
    assert rb"caf\xe9" in table.stdout


def swsl_command(arguments: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "swsl", *arguments], input=stdin, capture_output=True, timeout=300,
        env={**subprocess_environment(), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_each_program_goes_on_with_what_the_other_began(
    name: str, tmp_path: Path, photo: Path, odd_names: Path, tiny: list[str], classify_program: Path
) -> None:
    python = [sys.executable, "-m", "swsl", "classify", *tiny, "-o", name, "--resume"]
    cpp = [str(classify_program), tiny[1], "-o", name, "--resume"]
    for first, second in ((python, cpp), (cpp, python)):

        def go(
            command: list[str], *images: Path, more: tuple[str, ...] = ()
        ) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *map(str, images), *more], capture_output=True, text=True, cwd=tmp_path, env=subprocess_environment()
            )  # fmt: skip

        assert go(first, odd_names).returncode == 1
        records = (tmp_path / f"{name}.run.json").read_text()
        assert go(second, odd_names).stderr.endswith(f"{name} is complete\n")
        assert go(second, odd_names, photo).returncode == 0
        assert (tmp_path / f"{name}.run.json").read_text() == records
        assert go(first, odd_names, photo).stderr.endswith(f"{name} is complete\n")
        refused = go(second, odd_names, photo, more=("--top-k", "2"))
        assert refused.returncode == 1
        assert re.search("was made with (--top-k|top_k) 5 and not 2", refused.stderr)
        paths, _ = paths_and_errors(tmp_path / name)
        assert len(paths) == len(NAMES) + 1
        (tmp_path / name).unlink()
