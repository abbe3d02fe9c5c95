"""Models in timm's form: folders that timm wrote, here and on a server that answers as the Hugging Face Hub does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import seed_model
from hub_server import COMMIT, Hub
from timm.models import save_for_hf

import swsl
from swsl.cli.main import main
from swsl.deploy.eager import EagerRunner
from swsl.deploy.export import read_metadata
from swsl.resnext import ResNeXt
from swsl.training.checkpoint import load_model
from swsl.training.recipe import TrainOptions
from swsl.training.starting import starting_model

LABELS = ("cat", "dog", "tortoise")
SPEC = swsl.PreprocessSpec((64, 64), 0.95, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
SHAPE = {"layers": [1, 1, 1, 1], "cardinality": 2, "base_width": 4}


@pytest.fixture(scope="module")
def theirs() -> timm.models.ResNet:
    """A model of timm's that was fine-tuned, small enough to take no time."""
    return seed_model(timm.create_model("resnext50_32x4d", num_classes=3, **SHAPE))


@pytest.fixture
def folder(theirs: timm.models.ResNet, tmp_path: Path) -> Path:
    """As timm writes it."""
    data = {"input_size": (3, 64, 64), "crop_pct": 0.95, "mean": SPEC.mean, "std": SPEC.std}
    save_for_hf(
        theirs, tmp_path / "mine", {"label_names": LABELS}, safe_serialization="both", data_config=data
    )
    return tmp_path / "mine"


def change(folder: Path, what: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "config.json").read_text())
    what(content)
    (folder / "config.json").write_text(json.dumps(content))


def data_config(model: torch.nn.Module, **options: bool) -> object:
    """timm's reading of it; from files timm has lists, elsewhere tuples."""
    return json.loads(json.dumps(timm.data.resolve_model_data_config(model, **options)))


@torch.inference_mode()
def test_timms_folder_is_the_model(folder: Path, theirs: timm.models.ResNet) -> None:
    x = torch.randn(2, 3, 64, 64)
    model = swsl.create_model(f"local-dir:{folder}").eval()
    assert torch.equal(model(x), theirs(x))
    assert data_config(model) == data_config(timm.create_model(f"local-dir:{folder}"))
    assert data_config(model, use_test_size=True) == data_config(
        timm.create_model(f"local-dir:{folder}"), use_test_size=True
    )
    assert not hasattr(model, "variant")  # it shares the architecture's name with one, not its weights
    runner = EagerRunner(model)
    assert (runner.spec, runner.labels) == (SPEC, LABELS)


def test_either_file_of_weights_is_read_and_the_safe_one_first(
    folder: Path, theirs: timm.models.ResNet
) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert torch.equal(swsl.create_model(f"local-dir:{folder}").fc.weight, theirs.fc.weight)
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(swsl.create_model(f"local-dir:{folder}").fc.weight, theirs.fc.weight)


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code in the file was run')",)


def test_no_code_in_a_folder_is_run(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"fc.weight": RunsCode()}, folder / "pytorch_model.bin")
    with pytest.raises(
        swsl.WeightsError, match="pytorch_model.bin: refused, since loading it would run code"
    ):
        swsl.create_model(f"local-dir:{folder}")


def test_another_number_of_classes_is_a_fresh_classifier_without_names(folder: Path) -> None:
    source = f"local-dir:{folder}"
    model, begun = swsl.create_model(source, num_classes=5), swsl.create_model(source)
    assert torch.equal(model.layer4[0].conv1.weight, begun.layer4[0].conv1.weight)
    assert EagerRunner(model).labels == ("0", "1", "2", "3", "4")
    assert EagerRunner(model).spec == SPEC
    assert swsl.create_model(source, num_classes=0)(torch.ones(2, 3, 64, 64)).shape == (2, 2048)
    fresh = swsl.create_model(source, pretrained=False)
    assert not torch.equal(fresh.layer4[0].conv1.weight, begun.layer4[0].conv1.weight)
    assert EagerRunner(fresh).labels == LABELS


@pytest.mark.parametrize("as_weights", [False, True])
def test_what_commands_load(folder: Path, as_weights: bool) -> None:
    source = f"local-dir:{folder}"
    loaded = load_model("swsl_resnext101_32x8d", source) if as_weights else load_model(source)
    assert (loaded.spec, loaded.labels, loaded.variant) == (SPEC, LABELS, None)
    assert loaded.license == "apache-2.0"  # of the weights that timm started from


def test_a_name_and_a_folder_must_agree(folder: Path) -> None:
    source = f"local-dir:{folder}"
    assert swsl.create_model("swsl_resnext50_32x4d", weights=source).num_classes == 3
    with pytest.raises(
        swsl.WeightsError, match="holds swsl_resnext50_32x4d, not swsl_resnext101_32x8d; ask for"
    ):
        swsl.create_model("swsl_resnext101_32x8d", weights=source)


@pytest.mark.slow
def test_swsl_weights_keep_their_licence(tmp_path: Path) -> None:
    """A model of ours that timm's own function saves."""
    ours = seed_model(swsl.create_model("swsl_resnext50_32x4d", pretrained=False, num_classes=3))
    save_for_hf(ours, tmp_path, {"label_names": LABELS}, safe_serialization=True)
    loaded = load_model(f"local-dir:{tmp_path}")
    assert loaded.model.variant is swsl.VARIANTS["swsl_resnext50_32x4d"]
    assert (loaded.license, loaded.variant) == ("CC-BY-NC-4.0", "swsl_resnext50_32x4d")
    assert (loaded.spec, loaded.labels) == (swsl.PreprocessSpec(), LABELS)
    x = torch.randn(1, 3, 64, 64)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(loaded.model.eval()(x), ours(x))
        assert torch.equal(theirs(x), ours(x))


@pytest.mark.slow
def test_classify_takes_a_folder(folder: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["classify", str(photo), "--weights", f"local-dir:{folder}", "--top-k", "3"]
    expected = EagerRunner(swsl.create_model(f"local-dir:{folder}")).classify([photo], top_k=3)[0]
    assert main(command) == 0
    lines = capsys.readouterr().out
    positions = [lines.index(prediction.label) for prediction in expected]
    assert positions == sorted(positions)
    change(
        folder, lambda content: content.update(label_names=["ant", "bee", "cow"])
    )  # and the weights as before
    assert main(command) == 0
    lines = capsys.readouterr().out
    assert all(name in lines for name in ("ant", "bee", "cow"))


@pytest.mark.slow
def test_export_takes_a_folder(folder: Path, tmp_path: Path) -> None:
    assert main(["export", f"local-dir:{folder}", "-o", str(tmp_path / "mine.pt")]) == 0
    written = read_metadata(tmp_path / "mine.pt")
    assert tuple(written["labels"]) == LABELS
    assert swsl.PreprocessSpec(**written["preprocess"]) == SPEC
    assert (
        written["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("as_weights", [False, True])
def test_training_starts_from_a_folder(folder: Path, tmp_path: Path, as_weights: bool) -> None:
    source = {"weights" if as_weights else "model": f"local-dir:{folder}"}
    model, spec, license_ = starting_model(TrainOptions(tmp_path, tmp_path / "run", **source), classes=7)
    assert (model.num_classes, spec, license_) == (7, SPEC, "apache-2.0")
    begun = swsl.create_model(f"local-dir:{folder}")
    assert torch.equal(model.layer1[0].conv2.weight, begun.layer1[0].conv2.weight)


# what is wrong with a folder


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_text("{}")
    for place, message in (
        ("gone", "no such folder"),
        ("file", "is a file"),
        ("alone", "expected config.json beside model.safetensors or pytorch_model.bin, found config.json"),
    ):
        with pytest.raises(swsl.WeightsError, match=f"^weights: local-dir:{tmp_path}/{place}: {message}"):
            swsl.create_model(f"local-dir:{tmp_path}/{place}")
    with pytest.raises(swsl.WeightsError, match="local-dir:: expected local-dir:FOLDER or hf-hub:OWNER/NAME"):
        swsl.create_model("local-dir:")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"architecture": "resnet50"},
            "architecture: 'resnet50' is a ResNet; .*the nearest is swsl_resnext50_32x4d",
        ),
        ({"architecture": 3}, "expected an object with timm's name of an architecture"),
        ({"num_classes": -1}, "num_classes: expected a whole number of 0 or more, got -1"),
        ({"num_classes": 5}, "label_names: expected 5, one a class, got 3"),
        ({"num_classes": 5, "label_names": None}, "says 5 classes, model.safetensors has 3"),
        ({"label_names": [1, 2, 3]}, "label_names: expected names"),
        ({"global_pool": "max"}, "global_pool: expected 'avg', got 'max'"),
        ({"model_args": {"in_chans": 1}}, "in_chans: expected 3, got 1"),
        ({"model_args": {"stem_type": "deep"}}, "model_args: stem_type: would make another network"),
        ({"model_args": {"layers": "many"}}, "layers: expected numbers of blocks"),
        ({"model_args": {"layers": [1, 1]}}, "layers: expected four positive numbers of blocks"),
        ({"model_args": {**SHAPE, "cardinality": 4}}, "does not fit the model"),
        ({"model_args": {**SHAPE, "cardinality": "2"}}, "cardinality: expected a whole number, got '2'"),
        ({"model_args": []}, "pretrained_cfg, model_args: expected objects"),
        ({"pretrained_cfg": 7}, "pretrained_cfg, model_args: expected objects"),
        ({"pretrained_cfg": {"input_size": [1, 64, 64]}}, "input_size: expected 3 channels"),
        ({"pretrained_cfg": {"interpolation": "lanczos"}}, "interpolation: expected 'bilinear' or 'bicubic'"),
        ({"pretrained_cfg": {"crop_mode": "squash"}}, "crop_mode: expected 'center', got 'squash'"),
        ({"pretrained_cfg": {"crop_pct": "all"}}, "crop_pct: expected above 0"),
        ({"pretrained_cfg": {"std": [1, 0, 1]}}, "std: expected positive numbers"),
    ],
)
def test_a_configuration_that_is_no_model_of_ours(
    folder: Path, content: dict[str, Any], message: str
) -> None:
    change(folder, lambda before: (before["model_args"].pop("num_classes"), before.update(content)))
    if "model_args" not in content:
        message = rf"^weights: local-dir:{folder}: .*config.json.*{message}"
    with pytest.raises(swsl.WeightsError, match=message):
        swsl.create_model(f"local-dir:{folder}")


@pytest.mark.parametrize("text", ["", "[]", "{", '"resnext50_32x4d"', "[" * 100_000, "\xff"])
def test_a_configuration_that_is_damaged(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(swsl.WeightsError, match=f"local-dir:{folder}: {folder}/config.json: "):
        swsl.create_model(f"local-dir:{folder}")


def test_what_a_configuration_leaves_out_is_as_in_timm(folder: Path) -> None:
    def leave_out(content: dict[str, Any]) -> None:
        content["pretrained_cfg"] = {}
        content["label_names"] = {"0": "cat", "2": "tortoise"}  # one has none

    change(folder, leave_out)
    ours = swsl.create_model(f"local-dir:{folder}")
    theirs = timm.create_model(f"local-dir:{folder}")
    assert data_config(ours) == data_config(theirs)
    assert EagerRunner(ours).spec.interpolation == "bicubic"
    assert EagerRunner(ours).labels == ("cat", "1", "tortoise")


def test_timms_first_files_had_one_object(folder: Path) -> None:
    old = {"num_classes": 3, "labels": list(LABELS), "interpolation": "bilinear", "input_size": [3, 64, 64]}
    (folder / "config.json").write_text(json.dumps({"architecture": "swsl_resnext50_32x4d", **old}))
    model = swsl.create_model(f"local-dir:{folder}", pretrained=False)
    assert EagerRunner(model).labels == LABELS
    assert EagerRunner(model).spec == swsl.PreprocessSpec((64, 64))


# the Hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    served = Hub(tmp_path / "hub-cache")
    yield served
    served.stop()


def files_of(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


LOAD = """
import sys, swsl
from swsl.training.checkpoint import load_model
for name in sys.argv[1:]:
    try:
        loaded = load_model(name)
        weights = loaded.model.fc.weight.double().sum().item()
        print(weights, *loaded.labels[:3], loaded.variant, loaded.license)
    except swsl.WeightsError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_repository_is_downloaded_once(hub: Hub, folder: Path, theirs: timm.models.ResNet) -> None:
    hub.repositories["me/mine"] = files_of(folder, "config.json", "model.safetensors", "pytorch_model.bin")
    hub.repositories["me/old"] = files_of(folder, "config.json", "pytorch_model.bin")
    expected = f"{theirs.fc.weight.double().sum().item()} {' '.join(LABELS)} None apache-2.0"
    found = hub.run(LOAD, "me/mine", "me/mine@main", f"me/mine@{COMMIT}", "me/old")
    assert found == [expected] * 4
    gets = [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line]
    assert len(gets) == len(set(gets)) == 4
    assert not any("mine" in line and "pytorch_model" in line for line in gets)
    # of the commit that its configuration is of, whatever is pushed between
    assert f"GET /me/mine/resolve/{COMMIT}/model.safetensors" in gets
    offline = hub.run(LOAD, "me/mine", "me/other", HF_HUB_OFFLINE="1")
    assert offline[0] == expected
    assert (
        "hf-hub:me/other: the Hub cannot be reached, and config.json is not in its cache here" in offline[1]
    )


def test_what_is_wrong_on_the_hub(hub: Hub, folder: Path) -> None:
    whole = files_of(folder, "config.json", "model.safetensors")
    hub.repositories = {
        "me/mine": whole,
        "me/empty": {},
        "me/bare": files_of(folder, "config.json"),
        "resnet": {**whole, "config.json": b'{"architecture": "resnet50", "pretrained_cfg": {}}'},
    }
    contents = "config.json beside model.safetensors or pytorch_model.bin"
    expected = {
        "me/gone": "there is no such repository, or it is private: log in",
        "me/mine@v9": "there is no revision v9",
        "me/empty": f"has no config.json; expected {contents}",
        "me/bare": f"has no model.safetensors and no pytorch_model.bin; expected {contents}",
        "a/b/c": "Repo id must be in the form",
        "resnet": "config.json: architecture: 'resnet50' is a ResNet",
    }
    for (name, message), line in zip(expected.items(), hub.run(LOAD, *expected), strict=True):
        assert line.startswith(f"weights: hf-hub:{name}: ")
        assert message in line


def test_a_fresh_model_downloads_no_weights(hub: Hub, folder: Path) -> None:
    hub.repositories = {"me/bare": files_of(folder, "config.json")}
    made = "import swsl; print(swsl.create_model('hf-hub:me/bare', pretrained=False).num_classes)"
    assert hub.run(made) == [str(json.loads((folder / "config.json").read_text())["num_classes"])]


def test_without_huggingface_hub_an_error_says_what_to_install(hub: Hub) -> None:
    (line,) = hub.run("import sys; sys.modules['huggingface_hub'] = None\n" + LOAD, "me/mine")
    assert "hf-hub:me/mine: needs huggingface_hub: pip install huggingface_hub safetensors; or" in line


def test_timms_published_repository(hub: Hub, model50: ResNeXt, tmp_path: Path) -> None:
    """By its name and in its files' form: the published model is found in it, licence and all."""
    published = timm.create_model("resnext50_32x4d.fb_swsl_ig1b_ft_in1k")
    published.load_state_dict(model50.state_dict())
    save_for_hf(published, tmp_path, safe_serialization=True)
    change(tmp_path, lambda content: (content.pop("model_args"), content.pop("global_pool")))  # newer than it
    name = "timm/resnext50_32x4d.fb_swsl_ig1b_ft_in1k"
    hub.repositories[name] = files_of(tmp_path, "config.json", "model.safetensors")
    weights = model50.fc.weight.double().sum().item()
    expected = f"{weights} {' '.join(swsl.LABELS[:3])} swsl_resnext50_32x4d CC-BY-NC-4.0"
    assert hub.run(LOAD, name) == [expected]
