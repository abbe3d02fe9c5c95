"""Errors in the words of the command line, exit statuses, and names of pictures."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from conftest import SMALL_ARGUMENTS
from PIL import Image

from swsl.cli.main import build_parser, main
from swsl.cli.wording import as_typed
from swsl.deploy.runner import build_info
from swsl.training.checkpoint import load_checkpoint

RUN = ("--epochs", "1", "--batch-size", "8", "--lr", "0.01", "--workers", "0", "--device", "cpu")


@pytest.mark.parametrize(
    ("line", "message", "expected"),
    [
        ("finetune d --ema 2", "ema: expected below 1", "--ema: expected below 1"),
        ("finetune d --lr 0", "learning_rate: expected a positive number", "--lr: expected a positive number"),
        ("finetune d", "batch_size: 6 images", "--batch-size: 6 images"),
        ("finetune d", "give weights=FILE or scratch=True", "give --weights FILE or --scratch"),
        ("finetune d", "has epochs=10, clip_norm=None, flip=True", "has --epochs 10, without --clip-norm, without --no-flip"),
        ("finetune d", "has flip=False, compile=False, recipe='swsl'.", "has --no-flip, without --compile, --recipe swsl."),
        ("finetune d", "has data='/a/b', 48 training images", "has DIR /a/b, 48 training images"),
        ("classify a.jpg", "give its path as weights=", "give its path as --weights"),
        ("classify a.jpg", "a.jpg: 9 pixels; raise max_pixels if", "a.jpg: 9 pixels; raise --max-pixels if"),
        # What was not typed, and what is no argument: files, other names of Python.
        ("classify a.jpg", "weights: https://host/w.pth: not found", "weights: https://host/w.pth: not found"),
        ("classify weights", "weights: no such file", "weights: no such file"),
        ("demo -o output", "output: is a directory", "output: is a directory"),
        ("classify a.jpg", "b/max_pixels.jpg: no, top_k/a.jpg: no", "b/max_pixels.jpg: no, top_k/a.jpg: no"),
        ("classify a.jpg", "weights=1/a.jpg: no, a  max_pixels.jpg: no", "weights=1/a.jpg: no, a  max_pixels.jpg: no"),
        ("export n -o m.pt", "got num_classes=0; call it", "got num_classes=0; call it"),
    ],
)  # fmt: skip
def test_the_librarys_names_become_the_commands(line: str, message: str, expected: str) -> None:
    assert as_typed(message, build_parser().parse_args(line.split())) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["finetune", "{data}", "--ema", "2"], "--ema: expected above 0 and below 1, got 2.0"),
        (["finetune", "{data}", "--lr", "-1"], "--lr: expected a positive number, got -1.0"),
        (["finetune", "{data}", "--crop-scale", "0"], "--crop-scale: expected above 0 and at most 1, got 0.0"),
        (["finetune", "{data}", "--architecture", "1,1,1,1:4x8"], "give --weights FILE or --scratch"),
        (["finetune", "{data}", *SMALL_ARGUMENTS, "--batch-size", "1"], "--batch-size: 48 images give batches of 1"),
        (["finetune", "{data}", *SMALL_ARGUMENTS, "--weights", "w"], "--scratch: starts from no weights"),
        (["validate", "{data}", "--weights", "none.pth"], "--weights: none.pth: no such file"),
        (["explain", "{photo}", "--weights", "{trained}", "--device", "cuda:97"], "--device: 'cuda:97' was asked for"),
        (["probe", "{data}", "--max-corrupt", "-1", "--weights", "{trained}"], "--max-corrupt: expected 0 or more and"),
        (["probe", "{data}", "--max-corrupt", "0.01", "--weights", "{trained}"], "or raise --max-corrupt"),
    ],
)  # fmt: skip
def test_errors_name_what_was_typed(
    arguments: list[str],
    expected: str,
    folders: Path,
    photo: Path,
    trained: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    min((folders / "train" / "0").iterdir()).write_bytes(b"no image")
    places = {"data": folders, "photo": photo, "trained": trained}
    assert main([argument.format(**places) for argument in arguments]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert expected in error
    for name in ("learning_rate", "max_corrupt", "batch_size", "weights=", "crop_scale"):
        assert name not in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", "a.jpg", "--resume"],
        ["embed", "a.jpg", "-o", "a.csv"],
        ["demo", "--runner", "m.pt", "--model", "swsl_resnext101_32x8d"],
        ["validate", "dir", "--runner", "m.pt", "--crop-pct", "1"],
        ["explain", "a.jpg", "-o", "a.webp"],
    ],
)
def test_wrong_usage_shows_the_usage_of_its_command(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"usage: swsl {arguments[0]} ")
    assert f"\nswsl {arguments[0]}: error: " in told


def test_a_run_is_resumed_with_its_own_options(
    few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "run"
    begin = ["finetune", str(few_digits), "-o", str(output)]
    resume = [*begin, "--resume", "--device", "cpu", "--workers", "0"]
    assert main([*begin, *SMALL_ARGUMENTS, *RUN, "--no-norm-decay"]) == 0
    before = load_checkpoint(output / "last.pth").training
    assert main(resume) == 0
    assert load_checkpoint(output / "last.pth").training["options"] == before["options"]
    assert main([*resume, *SMALL_ARGUMENTS, *RUN, "--no-norm-decay"]) == 0
    capsys.readouterr()
    given = ["--epochs", "2", "--clip-norm", "1", "--architecture", "1,1,1,2:2x4", "--class-weights"]
    assert main([*resume, *given]) == 1
    there, here, advice = re.fullmatch(
        r"swsl: error: --resume: the run in \S+ has (.*); asked for here: (.*?)\. (Give .*)\n",
        capsys.readouterr().err,
    ).groups()
    assert set(there.split(", ")) == {
        "--epochs 1", "without --clip-norm", "--architecture 1,1,1,1:2x4", "without --class-weights"
    }  # fmt: skip
    assert set(here.split(", ")) == {
        "--epochs 2", "--clip-norm 1.0", "--architecture 1,1,1,2:2x4", "--class-weights"
    }  # fmt: skip
    assert advice.startswith("Give the same options")
    # What it says to do for more epochs can be typed as it stands.
    more = re.search(r"--weights \S+ --output \S+", advice)[0].split()
    assert main([*begin[:2], *more, *RUN]) == 0
    assert (tmp_path / "run2" / "best.pth").is_file()


@pytest.mark.parametrize("command", ["demo", "explain", "validate", "profile"])
def test_a_picture_has_the_format_of_its_name(
    command: str,
    few_digits: Path,
    photo: Path,
    trained: Path,
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    begin, option = {
        "demo": (["demo", *tiny], "--output"),
        "explain": (["explain", str(photo), "--weights", str(trained)], "--output"),
        "validate": (["validate", str(few_digits / "val"), "--weights", str(trained)], "--reliability"),
        "profile": (["profile", tiny[1]], "--output"),
    }[command]
    for name, kind in (("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.png", "PNG")):
        assert main([*begin, option, str(tmp_path / name)]) == 0
        with Image.open(tmp_path / name) as picture:
            assert picture.format == kind
    capsys.readouterr()
    for name in ("a.webp", "a", "a.png.txt"):
        with pytest.raises(SystemExit):
            main([*begin, option, str(tmp_path / name)])
        told = capsys.readouterr()
        assert told.out == ""  # before any work
        assert (
            f"{option}: expected a name that ends in .png, .jpg or .jpeg, got '{tmp_path / name}'" in told.err
        )
        assert not (tmp_path / name).exists()


@pytest.mark.slow
def test_one_unreadable_image_makes_the_status_1_unless_it_is_allowed(
    folders: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = min((folders / "train" / "0").iterdir())
    bad.write_bytes(b"no image")
    weights = ["--weights", str(trained)]
    out = str(tmp_path / "out")
    commands = [
        ["validate", str(folders / "train"), *weights],
        ["explain", str(bad), *weights, "-o", f"{out}.png"],
    ]
    if build_info()["compiled"]:
        assert main(["export", str(trained), "-o", f"{out}.pt"]) == 0
        runner = ["--runner", f"{out}.pt"]
        train = str(folders / "train")
        commands += [
            ["classify", train, *runner], ["classify", train, *runner, "-o", f"{out}.csv"],
            ["embed", train, *runner, "-o", f"{out}.npy"], ["validate", train, *runner],
        ]  # fmt: skip
    for command in commands:
        assert main(command) == 1, command
        assert str(bad) in capsys.readouterr().err
    for command in (
        ["probe", str(folders), *weights],
        ["finetune", str(folders), "-o", out, *SMALL_ARGUMENTS, *RUN],
    ):
        assert main(command) == 0, command
        assert str(bad) in capsys.readouterr().err
        shutil.rmtree(out, ignore_errors=True)
        assert main([*command, "--max-corrupt", "0"]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("swsl: error: 1 of 69 images cannot be read, more than 0% (")
        assert last.endswith("raise --max-corrupt")
    assert "--max-corrupt allows" in " ".join(build_parser().format_help().split())


def test_a_file_that_was_written_is_named_at_the_end(
    folders: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = folders / "train" / "0"
    for command, name in (("classify", "a.csv"), ("classify", "a.jsonl"), ("embed", "a.npy")):
        arguments = [command, str(images), *tiny, "-o", str(tmp_path / name)]
        assert main(arguments) == 0
        assert capsys.readouterr().err.endswith(f"\nswsl: 16 rows are in {tmp_path / name}\n")
        assert main([*arguments, "--resume"]) == 0
        assert capsys.readouterr().err.endswith(f"\nswsl: {tmp_path / name} is complete\n")
    bad = min(images.iterdir())
    bad.write_bytes(b"no image")
    assert main(["classify", str(bad), *tiny, "-o", str(tmp_path / "b.csv")]) == 1
    assert capsys.readouterr().err.endswith(
        f"\nswsl: 1 row is in {tmp_path / 'b.csv'}, 1 of them with an error\n"
    )
