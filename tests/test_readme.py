"""The examples of the README and of the pages in docs/, run as they stand there."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT, same_tensors, subprocess_environment
from PIL import Image

import swsl
import swsl.deploy.runner
from swsl.cli.main import build_parser
from swsl.timm_form import is_folder

README = (ROOT / "README.md").read_text("utf-8")
PAGES = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
TRAINING = PAGES["training"]


def blocks_of(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# In the order in which they are read: later examples use the files that earlier ones write.
BLOCKS = blocks_of("".join([README, *(PAGES[name] for name in ("models", "deploy", "cpp", "formats"))]))

# The published weights and org/swsl are on the network; seeded weights and this checkout stand in for them.
STAND_IN = f"""
import sys, pathlib
import torch, swsl.cli.foreign, swsl.variants, swsl.weights
from swsl.training._torchvision import import_torchvision

def seeded(url, **_):
    name = next(variant.name for variant in swsl.VARIANTS.values() if variant.url == url)
    path = pathlib.Path("seeded", name + ".pth").resolve()
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        torch.save(swsl.create_model(name, pretrained=False).state_dict(), path)
    return path

swsl.weights.download = seeded
import_torchvision()  # beside a CPU build of torch, timm's import of it would fail
load_foreign = swsl.cli.foreign.load_foreign
swsl.cli.foreign.load_foreign = lambda source, **options: load_foreign(source, **{{**options, "pretrained": False}})
load = torch.hub.load
torch.hub.load = lambda repository, *arguments, **options: load(
    {str(ROOT)!r} if repository == "org/swsl" else repository, *arguments, **{{**options, "source": "local"}})
"""


def furnish(folder: Path, weights50: Path) -> Path:
    """Give a folder the `swsl` command, and stand-ins for what is on the network."""
    (folder / "seeded").mkdir()
    shutil.copy(weights50, folder / "seeded" / "swsl_resnext50_32x4d.pth")
    (folder / "stand_in.py").write_text(STAND_IN)
    command = folder / "bin" / "swsl"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\nimport sys\nimport stand_in\nfrom swsl.cli.main import main\nsys.exit(main())\n"
    )
    command.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, weights50: Path) -> Path:
    """What a reader of the README has: a photograph, a folder of them, and the `swsl` command."""
    folder = furnish(tmp_path_factory.mktemp("readme"), weights50)
    (folder / "photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        shutil.copy(ROOT / "swsl" / "cli" / "chelsea.jpg", folder / name)
    return folder


def run(folder: Path, *command: str) -> str:
    environment = subprocess_environment()
    environment["PYTHONPATH"] += f":{folder}"
    environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"
    environment["TORCH_HOME"] = str(folder / "torch-home")
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def commands(word: str, blocks: list[tuple[str, str]] = BLOCKS) -> list[str]:
    shell = "".join(text for language, text in blocks if language == "sh")
    lines = [line.split("  #")[0].strip() for line in shell.splitlines()]
    return [line for line in lines if line.startswith(word)]


def test_the_set_up_is_two_commands() -> None:
    assert commands("pip") == ["pip install . && swsl demo", "pip install '.[test]' && pytest"]
    assert re.search(
        r"^pip install '\.\[test\]' && pytest\b", (ROOT / ".ci" / "run").read_text(), re.MULTILINE
    )


def test_the_front_door_is_short_and_leads_to_every_page() -> None:
    assert README.count("\n") <= 150
    for page in ("README", *(f"docs/{name}" for name in PAGES)):
        path = ROOT / f"{page}.md"
        links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8"))
        assert all((path.parent / link).exists() for link in links), page
        assert page == "README" or f"({page}.md)" in README


def test_the_speed_in_the_readme_is_that_of_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    report = importlib.import_module("report")
    summary = report.summary(PAGES["speed"])
    assert summary.count("\n") >= 3
    assert f"\n{summary}\n" in README


def test_where_a_placeholder_first_stands_is_what_to_write_instead(
    tmp_path: Path, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = README.partition("`org/swsl` is a placeholder")
    assert first.count("org/swsl") == 1
    fork, clone = re.findall(r"`(torch\.hub\.load\(\"(?!org).*?\))`", README)
    fetched = torch_home / "hub" / "YOU_swsl_main"
    fetched.mkdir(parents=True)
    for part in ("hubconf.py", "swsl"):
        (fetched / part).symlink_to(ROOT / part)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "swsl").symlink_to(ROOT)
    monkeypatch.chdir(tmp_path)
    for line in (fork, clone):
        assert eval(line[:-1] + ", pretrained=False)").variant.name == "swsl_resnext50_32x4d"


def test_what_a_build_needs_is_what_it_asks_for() -> None:
    """The lowest releases, as pyproject.toml and CMakeLists.txt have them."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (start,) = re.findall(r"^## Start.*?(?=^## )", README, re.DOTALL | re.MULTILINE)
    for name, told in (
        ("requires-python = ", "Python "), ('"torch', "torch "), ('"pillow', "Pillow "),
        ('"setuptools', "setuptools "), ('"cmake', "CMake "), ('"pybind11', "pybind11 "),
    ):  # fmt: skip
        (lowest,) = re.findall(rf'^[^#]*{name}"?>=([\d.]+)"', project, re.MULTILINE)
        assert told + lowest in start
    assert "cmake_minimum_required(VERSION 3.24)" in (ROOT / "CMakeLists.txt").read_text("utf-8")


def test_a_clone_does_not_show_what_the_commands_write_there() -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert build_parser().parse_args(["demo"]).output == "swsl-demo.png"
    assert "/swsl-demo.png" in ignored
    assert "picture: swsl-demo.png" in README


@pytest.mark.slow
def test_commands_and_python(workplace: Path) -> None:
    for line in commands("swsl "):
        run(workplace, "sh", "-c", line)
    assert (workplace / "predictions.csv").read_text().count("photos/") == 2
    (name,) = re.findall(r'`timm\.create_model\("local-dir:(.*?)", pretrained=True\)`', PAGES["formats"])
    theirs = timm.create_model(f"local-dir:{workplace / name}", pretrained=True)
    ours = swsl.create_model(
        "swsl_resnext50_32x4d", weights=workplace / "seeded" / "swsl_resnext50_32x4d.pth"
    )
    assert same_tensors(dict(theirs.named_parameters()), dict(ours.named_parameters()))
    blocks = [text for language, text in BLOCKS if language == "python"]
    assert len(blocks) >= 8
    for text in blocks:
        if "Runner" in text and not swsl.deploy.runner.build_info()["compiled"]:
            continue  # says why at length; test_runner.py covers that
        run(workplace, sys.executable, "-c", f"import stand_in\n{text}")


@pytest.mark.slow
def test_the_c_plus_plus_program(workplace: Path, frozen50: Path, tmp_path: Path) -> None:
    """What stands there is compiled against the installed package, and predicts what the Python runner does."""
    if not swsl.deploy.runner.build_info()["compiled"]:
        assert os.environ.get("SWSL_REQUIRE_RUNNER") != "1", swsl.deploy.runner.build_info()["reason"]
        pytest.skip(swsl.deploy.runner.build_info()["reason"])
    (program,) = (text for language, text in BLOCKS if language == "cpp")
    (project,) = (text for language, text in BLOCKS if language == "cmake")
    (tmp_path / "app.cpp").write_text(program)
    (tmp_path / "CMakeLists.txt").write_text(project)
    for name, source in (("model.pt", frozen50), ("photo.jpg", workplace / "photo.jpg")):
        (tmp_path / name).symlink_to(source)
    run(tmp_path, "cmake", "-B", "build", f"-DCMAKE_PREFIX_PATH={swsl.cmake_prefix_path}", f"-DPython_EXECUTABLE={sys.executable}")  # fmt: skip
    run(tmp_path, "cmake", "--build", "build")
    printed = [line.rsplit(" ", 1) for line in run(tmp_path, "build/app").splitlines()]
    (expected,) = swsl.Runner(frozen50).classify([workplace / "photo.jpg"], top_k=5)
    assert [label for label, _ in printed] == [prediction.label for prediction in expected]
    probabilities = [float(probability) for _, probability in printed]
    assert probabilities == pytest.approx([prediction.probability for prediction in expected], rel=1e-4)


def test_training_commands_are_understood() -> None:
    """Each line's options must exist; the lines that need no ImageNet and no eight GPUs are run below."""
    lines = commands("swsl ", blocks_of(TRAINING))
    assert {line.split()[1] for line in lines} >= {
        "probe",
        "finetune",
        "validate",
        "explain",
        "export",
        "classify",
    }
    for line in lines + [line.split(" -m ")[1] for line in commands("torchrun", blocks_of(TRAINING))]:
        build_parser().parse_args(shlex.split(line)[1:])


@pytest.mark.slow
def test_from_a_folder_of_photographs_to_a_program_that_recognises_them(
    tmp_path: Path, few_digits: Path, weights50: Path, request: pytest.FixtureRequest
) -> None:
    """The section's commands as they stand there, on digits for photographs. How well they are recognised is test_train.py's."""
    folder = furnish(tmp_path, weights50)
    for part, count in (("train", 8), ("val", 3)):
        for digit in "01":
            (folder / "photos" / part / digit).mkdir(parents=True)
            for path in sorted((few_digits / part / digit).iterdir())[:count]:
                shutil.copy(path, folder / "photos" / part / digit)
    Image.open(path).save(folder / "photo.jpg")
    compiled = swsl.deploy.runner.build_info()["compiled"]
    if compiled:
        (folder / "dist" / "bin").mkdir(parents=True)
        (folder / "dist" / "bin" / "swsl-classify").symlink_to(request.getfixturevalue("classify_program"))
    else:
        assert os.environ.get("SWSL_REQUIRE_RUNNER") != "1", swsl.deploy.runner.build_info()["reason"]

    blocks = blocks_of(TRAINING)
    told = {}
    for line in commands("", blocks[:1]):
        needs_compiler = "--runner" in line or line.startswith("dist/")
        if line.startswith("pip") or (needs_compiler and not compiled):
            continue
        told[line] = run(folder, "sh", "-c", line)
    (python,) = (text for language, text in blocks if language == "python")
    printed = run(folder, sys.executable, "-c", f"import stand_in\n{python}")

    assert {path.name for path in (folder / "run").iterdir()} == {
        "options.json", "best.pth", "last.pth", "metrics.csv", "curves.png", "predictions.csv", "confusion.png",
        "mistakes.png"}  # fmt: skip
    answers = [
        re.findall(r"([\d.]+)%  ([01])$", text, re.MULTILINE)
        for line, text in told.items()
        if "photo.jpg" in line
    ]
    assert len(answers) == (3 if compiled else 1)  # explain, classify, swsl-classify
    assert len(answers[0]) == 2
    for other in answers[1:]:
        assert [label for _, label in other] == [label for _, label in answers[0]]
        assert [float(p) for p, _ in other] == pytest.approx([float(p) for p, _ in answers[0]], abs=0.02)
    assert f"label='{answers[0][0][1]}'" in printed


def test_facts_are_the_tables() -> None:
    for row, values in (
        ("parameters, M", [f"{v.parameters / 1e6:.1f}" for v in swsl.VARIANTS.values()]),
        ("multiply-accumulates at 224², G", [f"{v.macs / 1e9:.2f}" for v in swsl.VARIANTS.values()]),
        ("ImageNet top-1 / top-5, %", [f"{v.top1:.2f} / {v.top5:.2f}" for v in swsl.VARIANTS.values()]),
    ):
        assert f"| {row} | {' | '.join(values)} |" in README
    assert "CC-BY-NC 4.0: non-commercial use only" in README


def test_switching_from_timm_is_what_the_table_says(photo: Path) -> None:
    for ours in re.findall(
        r"swsl\.\w+", "".join([README, PAGES["models"], PAGES["deploy"], PAGES["formats"]])
    ):
        assert hasattr(swsl, ours.removeprefix("swsl.")) or ours == "swsl.json"
    (table,) = re.findall(r"^\| with timm .*?\n\n", PAGES["models"], re.DOTALL | re.MULTILINE)
    ((present, deprecated),) = re.findall(r"'(resnext.*?)'.* deprecated name, `'(.*?)'", table)
    with pytest.warns(UserWarning, match=f"deprecated model name {deprecated} to current {present}"):
        timm.create_model(deprecated, pretrained=False)
    for name in swsl.VARIANTS:
        assert timm.is_model_pretrained(present.replace("resnext50_32x4d", name.removeprefix("swsl_")))
    model = swsl.create_model(deprecated, pretrained=False)
    for name in re.findall(r"model\.(\w+)", table):
        assert hasattr(model, name)
    assert torch.is_tensor(swsl.preprocess(photo))


def test_what_each_tool_has_is_a_name_here() -> None:
    """The folders and repositories of the tables are tried in test_timm_form.py."""
    names = set(re.findall(r"swsl\.create_model\('([^']*)'", PAGES["models"]))
    plain = {name for name in names if not is_folder(name)}
    assert {swsl.variants.find_variant(name).name for name in plain} == {"swsl_resnext50_32x4d"}
    assert len(plain) == 2
    assert {name.partition(":")[0] for name in names - plain} == {"local-dir", "hf-hub"}
    (line,) = re.findall(r"`swsl (classify [^`]* --weights local-dir:[^`]*)`", PAGES["models"])
    assert is_folder(build_parser().parse_args(shlex.split(line)).weights)
