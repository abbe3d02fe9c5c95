"""Folders for timm: that it makes the same model and preprocessing of them, what they say, and whose files are replaced."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import NAMES, same_tensors, seed_model, seeded_model
from PIL import Image
from safetensors import safe_open

import swsl
from swsl.cli.main import main
from swsl.formats import timm_folder
from swsl.formats.golden import TOLERANCES, output_error
from swsl.formats.metadata import read_metadata
from swsl.state_dicts import read_state_dict

LABELS = ["cat", "dög", "a `quoted`\nfish"]
SPEC = swsl.PreprocessSpec((64, 48), 0.9, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def small_model(num_classes: int = 3) -> swsl.ResNeXt:
    return seed_model(swsl.ResNeXt((1, 2, 1, 1), 4, 4, num_classes))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check_timm_agrees(folder: Path, model: swsl.ResNeXt, spec: swsl.PreprocessSpec, photo: Path) -> None:
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, *spec.input_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        assert output_error(model, images, logits=theirs(images), features=features) <= TOLERANCES["float32"]
    config = timm.data.resolve_model_data_config(theirs)
    assert (config["interpolation"], config["crop_pct"]) == (spec.interpolation, spec.crop_pct)
    transform = timm.data.create_transform(**config, is_training=False)
    image = Image.open(photo).convert("RGB")
    assert torch.equal(transform(image), swsl.preprocess(image, spec))


@pytest.mark.parametrize(
    "name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
)
def test_a_published_variant(name: str, tmp_path: Path, photo: Path) -> None:
    model = seeded_model(name)
    swsl.export_timm(model, tmp_path / "folder")
    check_timm_agrees(tmp_path / "folder", model, swsl.PreprocessSpec(), photo)

    config = json.loads((tmp_path / "folder" / "config.json").read_text("utf-8"))
    architecture = name.removeprefix("swsl_")
    assert "model_args" not in config
    assert config["swsl"]["variant"] == name
    assert config["swsl"]["license"] == "CC-BY-NC-4.0"
    published = timm.create_model(f"{architecture}.fb_swsl_ig1b_ft_in1k").pretrained_cfg
    found = timm.create_model(f"local-dir:{tmp_path / 'folder'}").pretrained_cfg
    only_timms = {"url", "hf_hub_id", "origin_url"}
    said = {key: value for key, value in found.items() if key not in ("file", "source")}
    assert (
        json.loads(json.dumps({key: value for key, value in published.items() if key not in only_timms}))
        == said
    )


def test_a_fine_tuned_model_of_any_resnext(tmp_path: Path, photo: Path) -> None:
    model = small_model().train()
    swsl.export_timm(model, tmp_path / "mine", spec=SPEC, labels=LABELS, weights_sha256="ab" * 32)
    assert model.training
    check_timm_agrees(tmp_path / "mine", model.eval(), SPEC, photo)
    config = json.loads((tmp_path / "mine" / "config.json").read_text("utf-8"))
    assert (config["architecture"], config["num_classes"], config["num_features"]) == (
        "resnext50_32x4d",
        3,
        2048,
    )
    assert config["label_names"] == LABELS
    assert not {"license", "tag"} & config["pretrained_cfg"].keys()
    assert config["swsl"]["weights_sha256"] == "ab" * 32
    theirs = timm.create_model(f"local-dir:{tmp_path / 'mine'}", pretrained=True)
    assert list(theirs.pretrained_cfg["label_names"]) == LABELS
    state = read_state_dict(tmp_path / "mine" / "model.safetensors")
    assert same_tensors(state, dict(model.state_dict()))
    with safe_open(tmp_path / "mine" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_fine_tuned_variant_keeps_its_licence(tmp_path: Path) -> None:
    model = seeded_model(NAMES[0], num_classes=2)
    swsl.export_timm(model, tmp_path / "mine", labels=["a", "b"])
    config = json.loads((tmp_path / "mine" / "config.json").read_text("utf-8"))
    assert config["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
    assert config["swsl"]["variant"] is None
    card = (tmp_path / "mine" / "README.md").read_text("utf-8")
    assert 'license: "cc-by-nc-4.0"' in card
    assert "fine-tuned from published weights, whose licence it keeps" in card
    assert "CC-BY-NC-4.0: non-commercial use only" in card
    again = swsl.create_model(f"local-dir:{tmp_path / 'mine'}")
    swsl.export_timm(again, tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text("utf-8") == card
    swsl.export_model(again, tmp_path / "m.pt")
    assert read_metadata(tmp_path / "m.pt")["license"] == "CC-BY-NC-4.0"


def test_the_model_cards_example_runs(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its placeholders filled in, on own classes and on ImageNet's."""
    monkeypatch.chdir(tmp_path)
    Image.open(photo).save("photo.jpg")
    for labels, classes, name in ((LABELS, 3, "cat"), (None, 1000, "tench, Tinca tinca")):
        model = small_model(classes)
        swsl.export_timm(model, "FOLDER", spec=SPEC, labels=labels)
        card = Path("FOLDER", "README.md").read_text("utf-8")
        assert f"## Classes ({classes})" in card
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        made: dict = {}
        exec(code, made)
        assert made["logits"].shape == (1, classes)
        assert len(made["names"]) == classes
        assert made["names"][0] == name
    assert "`tench`, `goldfish`" in card
    assert "and 900 more" in card


def test_a_cards_classes_are_text(tmp_path: Path) -> None:
    swsl.export_timm(small_model(), tmp_path / "mine", spec=SPEC, labels=LABELS, license="My: own\nlicence")
    card = (tmp_path / "mine" / "README.md").read_text("utf-8")
    assert "`cat`, `dög`, `a 'quoted' fish`" in card
    header = card.split("---\n")[1]
    assert json.loads(header.splitlines()[0].removeprefix("license: ")) == "my: own\nlicence"


def test_the_command(trained: Path, tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "mine"
    assert main(["export", str(trained), "--format", "timm", "-o", f"{folder}/"]) == 0
    assert re.fullmatch(rf"{folder}: {trained}, \d+ MB, weights of your own\n", capsys.readouterr().out)
    checkpoint = swsl.training.checkpoint.load_checkpoint(trained)
    check_timm_agrees(folder, checkpoint.model.eval(), checkpoint.spec, photo)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["label_names"] == ["0", "1", "3"]
    assert config["swsl"]["weights_sha256"] == swsl.weights.file_sha256(trained)


def test_only_our_own_folder_is_written_anew(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture
) -> None:
    def export(model: swsl.ResNeXt, name: str) -> None:
        swsl.export_timm(model, tmp_path / name, spec=SPEC, labels=LABELS)

    (tmp_path / "empty").mkdir()
    export(small_model(), "empty")
    before = contents(tmp_path / "empty")
    assert before.keys() == {"config.json", "model.safetensors", "README.md"}
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to("empty")
    export(seed_model(small_model(), seed=1), "link")
    after = contents(tmp_path / "empty")
    assert after.pop("notes.txt") == b"mine"
    assert after["model.safetensors"] != before["model.safetensors"]
    assert after["config.json"] != before["config.json"]  # the fingerprint
    assert (tmp_path / "link").is_symlink()

    for name, files in {
        "timms": {"config.json": '{"architecture": "resnet18"}'},
        "no-json": {"config.json": "swsl"},
        "no-object": {"config.json": '"swsl"'},
        "others": {"README.md": "mine"},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        kept = contents(tmp_path / name)
        with pytest.raises(FileExistsError, match=f"{name}: holds files that are not of an export for timm"):
            export(small_model(), name)
        assert main(["export", str(trained), "--format", "timm", "-o", str(tmp_path / name)]) == 1
        assert "expected a new or empty folder" in capsys.readouterr().err
        assert contents(tmp_path / name) == kept
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file: is a file; expected the name of a folder"):
        export(small_model(), "file")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/no; make it first"):
        export(small_model(), "no/folder")


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swsl.export_timm(small_model(), tmp_path / "mine", spec=SPEC, labels=LABELS)
    before = contents(tmp_path / "mine")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(timm_folder, "_card", full)
    for name in ("mine", "new"):
        with pytest.raises(OSError, match="No space left"):
            swsl.export_timm(seed_model(small_model(), seed=1), tmp_path / name, spec=SPEC, labels=LABELS)
    assert contents(tmp_path / "mine") == before
    assert os.listdir(tmp_path) == ["mine"]


def test_a_folder_that_was_not_finished_is_read_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    swsl.export_timm(small_model(), folder, spec=SPEC, labels=LABELS)
    replace = os.replace
    for name in ("model.safetensors", "README.md", "config.json"):

        def killed(source: Path, target: Path, name: str = name) -> None:
            replace(source, target)
            if source.parent.name == "mine" and source.name == name:
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            swsl.export_timm(small_model(), folder, spec=SPEC, labels=LABELS[::-1])
        monkeypatch.undo()
        if name != "config.json":
            with pytest.raises(swsl.WeightsError, match=r"config\.json: expected an object with timm's name"):
                swsl.create_model(f"local-dir:{folder}")
    assert swsl.create_model(f"local-dir:{folder}").pretrained_cfg["label_names"][2] == "cat"


def test_wrong_arguments_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="labels: expected 3, one a class, got 2"):
        swsl.export_timm(small_model(), tmp_path / "f", labels=["a", "b"])
    with pytest.raises(ValueError, match="model: expected a classifier"):
        swsl.export_timm(small_model(0), tmp_path / "f")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="f: writing it needs safetensors: pip install safetensors"):
        swsl.export_timm(small_model(), tmp_path / "f", spec=SPEC, labels=LABELS)
    assert list(tmp_path.iterdir()) == []


def test_timm_need_not_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    swsl.export_timm(small_model(), tmp_path / "f", spec=SPEC, labels=LABELS)
    assert (tmp_path / "f" / "config.json").is_file()
