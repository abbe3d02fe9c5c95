"""Which files of a folder are images, and what is never opened."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, subprocess_environment, swsl_command
from PIL import Image

import swsl
from swsl.bulk.sources import IMAGE_SUFFIXES, UNREAD_SUFFIXES, find_images
from swsl.cli.main import main
from swsl.deploy.runner import build_info
from swsl.evaluation.class_folders import DataError, list_class_folders, list_training_data
from swsl.evaluation.labelled import read_labelled


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """A pipe that nobody writes to would be waited for."""

    def stop(*_: object) -> None:
        raise TimeoutError("waits for a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path, photo: Path) -> Path:
    """A folder as people have them: a good photograph, a link to it and one in a folder; all else is none, or a bad one."""
    root = tmp_path / "photos"
    for name in (
        "a.jpg", "._a.jpg", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg", "__MACOSX/._a.jpg", "sub/b.jpg", "sub/.c.jpg",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, root / name)
    (root / ".DS_Store").write_bytes(b"no image by its name, so no news")
    (root / "empty.jpg").write_bytes(b"")
    (root / "link.jpg").symlink_to("a.jpg")
    (root / "lost.jpg").symlink_to("nowhere")
    (root / "up").symlink_to("..")
    os.mkfifo(root / "pipe.jpg")
    (root / "piped.jpg").symlink_to("pipe.jpg")
    return root


def test_folders_yield_regular_files_that_are_not_hidden(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    expected = ["a.jpg", "empty.jpg", "link.jpg", "lost.jpg", "sub/b.jpg"]
    assert list(find_images(["photos"])) == [f"photos/{name}" for name in expected]
    assert capsys.readouterr().err == (
        "swsl: skipped: 5 hidden files and folders (photos/._a.jpg, …), 2 pipes, sockets and devices (photos/pipe.jpg, …), "
        "1 links to folders (photos/up)\n"
    )
    # What a user names himself is tried.
    named = ["photos/.ipynb_checkpoints", "photos/._a.jpg", "photos/pipe.jpg"]
    assert list(find_images(named)) == ["photos/.ipynb_checkpoints/a.jpg", *named[1:]]
    assert list(find_images(["photos"], report=False))
    assert capsys.readouterr().err == ""


def test_every_format_that_pillow_reads_is_taken_and_others_are_counted_by_name(
    tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture
) -> None:
    formats = Image.registered_extensions()
    assert {formats[suffix] for suffix in IMAGE_SUFFIXES} <= {
        *Image.OPEN,
        "MPO",
    }  # which the JPEG plugin opens
    small = Image.open(photo).resize((64, 48))
    saved = {suffix for suffix in IMAGE_SUFFIXES if formats[suffix] in Image.SAVE}
    assert saved >= {".avif", ".jp2", ".jfif", ".ppm", ".tga"}
    for suffix in saved:
        small.save(tmp_path / f"a{suffix}")
    for name in ("b.HEIC", "c.heic", "d.cr2", ".e.heic", "notes.txt"):
        (tmp_path / name).touch()
    found = list(find_images([str(tmp_path)]))
    assert found == sorted(str(tmp_path / f"a{suffix}") for suffix in saved)
    for path in found:
        assert swsl.load_image(path).width > 1, path
    assert capsys.readouterr().err == (
        f"swsl: skipped: 2 .heic images ({tmp_path}/b.HEIC, …), 1 .cr2 images ({tmp_path}/d.cr2)\n"
    )
    assert not IMAGE_SUFFIXES & UNREAD_SUFFIXES


def test_an_empty_folder_is_called_empty(
    tmp_path: Path, photo: Path, tiny: list[str], capsys: pytest.CaptureFixture
) -> None:
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "a.heic").touch()
    names = [str(tmp_path / name) for name in ("empty", "other")]
    assert main(["classify", *names, str(photo), *tiny, "--format", "csv", "--top-k", "1"]) == 1
    printed = capsys.readouterr()
    told = [f"{names[0]}: this folder is empty", f"{names[1]}: holds no image of a format that is read"]
    assert [row.split(",")[1] for row in printed.out.splitlines()[1:]] == [*told, ""]
    assert all(f"swsl: error: {each}\n" in printed.err for each in told)
    (tmp_path / "truth.txt").touch()
    with pytest.raises(
        DataError, match="empty: this folder is empty; expected the images that .*truth.txt is about"
    ):
        read_labelled(names[0], ["0"], truth=tmp_path / "truth.txt")


@pytest.mark.slow
def test_swsl_classify_says_the_same_of_folders_without_images(
    tmp_path: Path, tiny: list[str], classify_program: Path
) -> None:
    for name in ("empty", "other", "other/inner"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "a.heic").touch()
    ours, theirs = (
        subprocess.run(
            [*command, "empty", "other/", "other/inner", "--format", "csv"], cwd=tmp_path, capture_output=True, text=True,
            env=subprocess_environment(),
        )
        for command in ([sys.executable, "-m", "swsl", "classify", *tiny], [classify_program, tiny[1]])
    )  # fmt: skip
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    told = [
        re.findall(f"^{program}: (error: .*|skipped: .*)$", each.stderr, re.MULTILINE)
        for program, each in (("swsl", ours), ("swsl-classify", theirs))
    ]
    assert told[0] == told[1]
    assert len(told[0]) == 3 + 1


def test_a_folder_that_cannot_be_listed_is_an_error_of_its_own(tmp_path: Path, photo: Path) -> None:
    root = tmp_path / "photos"
    (root / "0" / "class").mkdir(parents=True)
    shutil.copy(photo, root / "0" / "class")
    # Even root cannot list a path that is too long.
    place = os.open(root, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("z" * 250, dir_fd=place)
        inner = os.open("z" * 250, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    good, bad = find_images([str(root)])
    assert good.endswith("0/class/chelsea.jpg")
    with pytest.raises(swsl.ImageError, match="zzz: cannot be opened: File name too long"):
        swsl.load_image(bad)
    with pytest.raises(DataError, match="zzz: cannot be listed; make it readable"):
        list_class_folders(root)


def test_names_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    """As in swsl-classify, which can then go on with what swsl began."""
    names = [b"z.jpg", "ü.jpg".encode(), b"\xff.jpg", "\U0001f600.jpg".encode()]
    try:
        for name in names:
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"")
    except OSError:
        pytest.skip("a file system that allows UTF-8 names only")
    found = [os.fsencode(os.path.basename(path)) for path in find_images([str(tmp_path)])]
    assert found == sorted(names)


def test_hidden_folders_are_no_classes(folders: Path, capsys: pytest.CaptureFixture) -> None:
    train, val = list_training_data(folders)
    before = train.paths + val.paths
    for name in ("train/.ipynb_checkpoints", "train/@eaDir", "val/__MACOSX", "val/1/.thumbnails"):
        shutil.copytree(folders / "train" / "0", folders / name)
    shutil.copy(before[0], folders / "train" / "0" / "._0.png")
    (folders / "train" / "0" / "again").symlink_to(".")  # goes round in circles
    os.mkfifo(folders / "train" / "1" / "pipe.png")
    train, val = list_training_data(folders)
    assert train.paths + val.paths == before
    assert train.classes == ["0", "1", "3"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("swsl: skipped: 5 hidden files and folders (")
    assert "1 pipes, sockets and devices (" in line
    assert f"1 links to folders that they are in ({folders}/train/0/again)" in line
    assert len(read_labelled(folders / "val", ["0", "1", "3"]).paths) == len(val.paths)
    assert capsys.readouterr().err.startswith("swsl: skipped: 2 hidden files and folders (")


@pytest.fixture
def special(tmp_path: Path) -> Iterator[dict[str, Path]]:
    pipe, address = tmp_path / "pipe.jpg", tmp_path / "socket.jpg"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(address))  # a path of at most 107 bytes
        yield {"a pipe": pipe, "a socket": address, "a device": Path(os.devnull)}


def test_pipes_sockets_and_devices_are_refused_unopened(
    special: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(os, "open", lambda *arguments, **_: opened.append(arguments))
    for kind, path in special.items():
        with pytest.raises(swsl.ImageError, match=f"{path}: is {kind}; expected an image file"):
            swsl.load_image(path)
    assert not opened


def test_a_pipe_among_the_images_is_one_row(special: dict[str, Path], photo: Path, engine: list[str]) -> None:
    names = [*special.values(), photo]
    done = subprocess.run(
        swsl_command("classify", *names, *engine, "--format", "csv", "--top-k", 1),
        capture_output=True, text=True, env=subprocess_environment(), timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    rows = done.stdout.splitlines()[1:]
    assert len(rows) == 4
    for kind, row in zip(special, rows, strict=False):
        assert f": is {kind}; expected an image file" in row
    assert rows[3].startswith(f"{photo},,")


@pytest.mark.parametrize("empty", [b"", "empty.jpg"], ids=["bytes", "file"])
@pytest.mark.parametrize("engine", ["Pillow", "compiled"])
def test_an_empty_file_is_called_empty(
    empty: bytes | str, engine: str, request: pytest.FixtureRequest
) -> None:
    Path("empty.jpg").touch()
    load: Callable[[object], object] = swsl.load_image
    if engine == "compiled":
        if not build_info()["compiled"]:
            pytest.skip(build_info()["reason"])
        runner = swsl.Runner(request.getfixturevalue("frozen50"))
        load = lambda source: runner.preprocess([source])  # noqa: E731
    with pytest.raises(swsl.ImageError, match=": is empty; expected"):
        load(empty)


def test_a_name_with_a_zero_byte_is_an_error_like_another(photo: Path) -> None:
    with pytest.raises(swsl.ImageError, match="cannot be opened"):
        swsl.load_image(f"{photo}\0.png")


def test_swsl_classify_takes_the_same_files_of_a_folder() -> None:
    """Or neither program could go on with what the other began."""
    source = (ROOT / "cpp" / "apps" / "sources.cpp").read_text("utf-8")
    for name, expected in (("image_suffixes", IMAGE_SUFFIXES), ("unread_suffixes", UNREAD_SUFFIXES)):
        (listed,) = re.findall(rf"{name} = {{(.*?)}};", source, re.DOTALL)
        assert set(re.findall(r'"(\.\w+)"', listed)) == expected
