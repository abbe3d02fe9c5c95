"""Where outputs go: through links, into pipes and devices, and never in place of what is not theirs.

Nothing here names a device of the machine: a test that fails as root must not replace it.
"""

from __future__ import annotations

import json
import os
import pty
import socket
import stat
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import subprocess_environment, swsl_command

from swsl.cli.main import main
from swsl.deploy.runner import Runner, build_info
from swsl.system.files import is_special, open_output, replacing, resolve_target
from swsl.training.checkpoint import load_checkpoint, save_checkpoint
from swsl.training.recipe import TrainOptions
from swsl.training.train import finetune


def write(path: str | Path, text: str = "new") -> None:
    with open_output(str(path)) as file:
        file.write(text)


class Reader:
    """What comes out of a named pipe."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path, self._got = path, b""
        # Both ends at once: neither this nor a writer waits for the other.
        self._handle = os.open(path, os.O_RDWR)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._got.endswith(b"\0end"):
            self._got += os.read(self._handle, 1 << 16)

    def text(self) -> bytes:
        os.write(self._handle, b"\0end")
        self._thread.join(60)
        os.close(self._handle)
        assert stat.S_ISFIFO(self.path.lstat().st_mode)
        return self._got.removesuffix(b"\0end")


def test_a_link_stays_and_its_target_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inner").mkdir()
    Path("inner/target.txt").write_text("old")
    Path("first").symlink_to("second")
    Path("second").symlink_to(tmp_path / "inner" / "target.txt")
    Path("folder").symlink_to("inner")
    Path("folder/dangling").symlink_to("new.txt")
    write("first")
    write("folder/dangling", "made")
    assert Path("inner/target.txt").read_text() == "new"
    assert Path("inner/new.txt").read_text() == "made"
    assert all(Path(name).is_symlink() for name in ("first", "second", "folder", "inner/dangling"))
    assert sorted(os.listdir("inner")) == ["dangling", "new.txt", "target.txt"]


def test_what_cannot_be_an_output_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one").symlink_to("two")
    Path("two").symlink_to("one")
    Path("lost").symlink_to("nowhere/out.txt")
    Path("folder").symlink_to(".")
    for path, message in (
        ("one", "one: is a link that leads back to itself"),
        ("lost", f"lost: there is no folder {tmp_path}/nowhere; make it first"),
        ("folder", "folder: is a directory; expected the name of a file"),
        (".", ".: is a directory; expected the name of a file"),
        ("..", "..: is a directory; expected the name of a file"),
    ):
        with pytest.raises(OSError, match=message):
            write(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(
            OSError, match="socket: is a socket; expected a file, a pipe or a character device"
        ):
            write("socket")
        assert is_special(Path("socket"))
    assert not is_special(Path("nowhere"))
    assert not is_special(tmp_path)


def test_a_replaced_file_hands_down_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    path.chmod(0o640)
    owner = (path.stat().st_uid, path.stat().st_gid)
    if os.geteuid() == 0:
        owner = (4321, 4322)
        os.chown(path, *owner)
    write(path)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)) == (0o640, owner)
    write(tmp_path / "fresh.txt")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "fresh.txt").stat().st_mode) == 0o666 & ~umask


def test_pipes_and_terminals_are_written_into(tmp_path: Path) -> None:
    pipe = Reader(tmp_path / "pipe.txt")
    (tmp_path / "link").symlink_to("pipe.txt")
    write(tmp_path / "link", "through a link\n" * 10_000)
    assert pipe.text() == b"through a link\n" * 10_000

    ours, theirs = pty.openpty()  # a character device that nobody else has
    tty.setraw(theirs)
    name = os.ttyname(theirs)
    assert is_special(resolve_target(name))
    write(name, "on a terminal")
    assert os.read(ours, 100) == b"on a terminal"
    os.close(ours)
    os.close(theirs)
    with pytest.raises(RuntimeError), replacing(tmp_path / "pipe.txt"):
        raise RuntimeError  # of which the pipe sees nothing


def test_a_frozen_module_and_a_checkpoint_need_a_file(trained: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    before = os.listdir(tmp_path)
    command = ["export", str(trained), "-o", str(tmp_path / "pipe.pt")]
    assert main(command) == 1
    with pytest.raises(OSError, match=r"pipe\.pt: is a pipe; expected the name of a file"):
        save_checkpoint(tmp_path / "pipe.pt", load_checkpoint(trained))
    assert os.listdir(tmp_path) == before
    assert is_special(tmp_path / "pipe.pt")


@pytest.fixture
def commands(trained: Path, few_digits: Path, photo: Path) -> dict[str, Callable[[str], list[str]]]:
    """Every command that writes one file, by the kind of the file, without the file."""
    weights, val = ["--weights", str(trained)], str(few_digits / "val")
    return {
        "pt": lambda path: ["export", str(trained), "-o", path],
        "png": lambda path: ["explain", str(photo), *weights, "-o", path],
        "json": lambda path: ["validate", val, *weights, "--json", path],
        "reliability.png": lambda path: ["validate", val, *weights, "--reliability", path],
        "probe.json": lambda path: ["probe", str(few_digits), *weights, "--json", path],
    }


def test_every_command_writes_through_a_link(
    commands: dict[str, Callable[[str], list[str]]], tmp_path: Path, trained: Path
) -> None:
    if build_info()["compiled"]:
        frozen = str(tmp_path / "frozen.pt")
        assert main(["export", str(trained), "-o", frozen]) == 0
        commands["demo.png"] = lambda path: ["demo", "--runner", frozen, "-o", path]
        if Runner(frozen).info.name == "planned":
            commands["profile.png"] = lambda path: ["profile", frozen, "-o", path]
    for kind, command in commands.items():
        link, target = tmp_path / f"link.{kind}", tmp_path / f"target.{kind}"
        link.symlink_to(target)
        assert main(command(str(link))) == 0, kind
        assert link.is_symlink(), kind
        assert target.stat().st_size > 100, kind


def test_commands_refuse_an_output_before_they_work(
    commands: dict[str, Callable[[str], list[str]]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for kind, command in commands.items():
        assert main(command(str(tmp_path / "no" / "out"))) == 1, kind
        out, errors = capsys.readouterr()
        assert (out, len(errors.splitlines())) == ("", 1), kind
        assert f"there is no folder {tmp_path / 'no'}; make it first" in errors


@pytest.mark.parametrize("kind", ["png", "json"])
def test_an_output_that_is_stdout_has_it_alone(
    kind: str, commands: dict[str, Callable[[str], list[str]]]
) -> None:
    done = subprocess.run(
        swsl_command(*commands[kind]("/dev/stdout")),
        capture_output=True,
        env=subprocess_environment(),
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    if kind == "json":
        assert json.loads(done.stdout)["images"] == 21
    else:
        assert done.stdout.startswith(b"\x89PNG")
        assert done.stdout.endswith(b"IEND\xae\x42\x60\x82")
    assert b"%" in done.stderr  # the text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has /dev/full")
def test_a_full_device_is_an_error(tmp_path: Path, few_digits: Path, trained: Path) -> None:
    """As stdout, which no program replaces."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            swsl_command("validate", few_digits / "val", "--weights", trained), stdout=full, stderr=subprocess.PIPE, env=subprocess_environment(PYTHONUNBUFFERED=""), text=True,
            timeout=100,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1,
        "swsl: error: stdout: cannot be written: No space left on device\n",
    )
    script = tmp_path / "script.py"
    script.write_text(
        "from swsl.system.files import open_output\nwith open_output('/dev/fd/1') as file: file.write('x')"
    )
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, script], stdout=full, stderr=subprocess.PIPE, env=subprocess_environment(), text=True,
            timeout=100,
        )  # fmt: skip
    assert done.stderr.endswith("OSError: /dev/fd/1: cannot be written: No space left on device\n")


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Path]:
    """The name of a run's folder: a link to one that is not there yet."""
    link = tmp_path / "run"
    link.symlink_to("elsewhere")
    yield link
    assert link.is_symlink()


@pytest.mark.slow
def test_a_training_run_goes_through_links(linked: Path, options: TrainOptions) -> None:
    store = linked.parent / "store"
    store.mkdir()
    linked.resolve().mkdir()
    (linked / "last.pth").symlink_to(store / "latest.pth")
    (linked / "metrics.csv").symlink_to(store / "metrics.csv")
    finetune(replace(options, output=linked, epochs=1), report=lambda _: None)
    assert (linked / "last.pth").is_symlink()
    assert (store / "latest.pth").stat().st_size > 1000
    assert (store / "metrics.csv").read_text().startswith("epoch,")


def test_a_runs_folder_may_be_a_link_to_nowhere_but_no_file(linked: Path, options: TrainOptions) -> None:
    finetune(replace(options, output=linked, epochs=1), report=lambda _: None)
    assert (linked.parent / "elsewhere" / "best.pth").is_file()
    file = linked.parent / "file"
    file.touch()
    with pytest.raises(ValueError, match=f"^{file}: File exists; expected a folder for the run's files"):
        finetune(replace(options, output=file), report=lambda _: None)


def test_outputs_go_through_links_and_into_pipes(
    tmp_path: Path, photo: Path, tiny: list[str], capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "real").mkdir()
    for command, name in (("classify", "out.csv"), ("classify", "out.parquet"), ("embed", "out.npy")):
        (tmp_path / name).symlink_to(f"real/{name}")
        arguments = [command, str(photo), *tiny, "-o", str(tmp_path / name)]
        assert main(arguments) == 0
        (tmp_path / "real" / name).chmod(0o604)
        assert main(arguments) == 0
        assert (tmp_path / name).is_symlink()
        assert stat.S_IMODE((tmp_path / "real" / name).stat().st_mode) == 0o604
        assert main([command, str(photo), *tiny, "--resume", "-o", str(tmp_path / "real" / name)]) == 0
        assert "is complete" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.npy", "out.parquet", "real"]

    for name in ("pipe.csv", "pipe", "pipe.npy", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
    for name, more in (("pipe.csv", []), ("pipe", ["--format", "csv"])):
        with subprocess.Popen(["cat", tmp_path / name], stdout=subprocess.PIPE) as reader:
            assert main(["classify", str(photo), *tiny, "-o", str(tmp_path / name), *more]) == 0
            assert reader.stdout
            assert reader.stdout.read() == (tmp_path / "out.csv").read_bytes()
    for arguments in (
        ["classify", "-o", str(tmp_path / "pipe.csv"), "--resume"], ["classify", "-o", str(tmp_path / "pipe.parquet")],
        ["embed", "-o", str(tmp_path / "pipe.npy")], ["embed", "-o", str(tmp_path / "pipe.parquet")],
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            main([*arguments, str(photo), *tiny])
        assert "expected a file, got a pipe or device" in capsys.readouterr().err
    assert all((tmp_path / name).is_fifo() for name in ("pipe.csv", "pipe", "pipe.npy", "pipe.parquet"))


def test_a_full_device_is_an_error_and_stays_one(
    tmp_path: Path, photo: Path, tiny: list[str], capsys: pytest.CaptureFixture
) -> None:
    device = tmp_path / "full.csv"  # of this test's own: /dev/full is everybody's
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("only root makes devices, and not on every file system")
    assert main(["classify", str(photo), *tiny, "-o", str(device)]) == 1
    assert "full.csv: cannot be written: No space left on device" in capsys.readouterr().err
    assert device.is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["full.csv"]
