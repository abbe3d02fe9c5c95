"""Names of variants in every tool's words, and what timm's functions read off a model."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from conftest import NAMES, ROOT, run, seed_model, swsl_command
from timm.data import resolve_model_data_config
from timm.data.model_config import resolve_input_data_config

import swsl
from swsl import variants
from swsl.deploy.eager import EagerRunner
from swsl.timm_form import spec_of, timm_config
from swsl.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from swsl.variants import find_variant

NAME = NAMES[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_tools_name_is_the_variant(name: str) -> None:
    variant = swsl.VARIANTS[name]
    _, in_timm, at_facebook = variant.names
    assert timm.get_pretrained_cfg(in_timm).url == variant.url
    with pytest.warns(UserWarning, match=f"{name} to current {in_timm}"):
        timm.create_model(name)
    assert at_facebook == name.removeprefix("swsl_") + "_swsl"
    for each in variant.names:
        assert find_variant(each) is variant


OTHERS = [
    name for kind in ("*resnet*", "*resnext*") for name in timm.list_pretrained(kind) if "fb_swsl" not in name
]


def test_other_networks_of_timm_are_refused() -> None:
    assert len(OTHERS) > 100
    for name in OTHERS:
        with pytest.raises(ValueError, match=r"; (the nearest is|did you mean) swsl_resnext"):
            find_variant(name)


@pytest.mark.parametrize(
    ("name", "why", "nearest"),
    [
        ("resnet50", "is a ResNet", NAMES[0]),
        ("resnet18.fb_swsl_ig1b_ft_in1k", "is a ResNet", NAMES[0]),
        ("resnet50_swsl", "is a ResNet", NAMES[0]),
        ("resnext50_32x4d", "is an architecture, whose weights elsewhere are others", NAMES[0]),
        ("resnext50_32x4d.a1_in1k", r"is this architecture with other weights \(a1_in1k\)", NAMES[0]),
        ("resnext101_32x8d.tv2_in1k", r"is this architecture with other weights \(tv2_in1k\)", NAMES[2]),
        ("resnext50_32x4d_ssl", "was trained semi-supervised", NAMES[0]),
        ("ssl_resnext101_32x4d", "was trained semi-supervised", NAMES[1]),
        ("resnext101_32x16d.fb_ssl_yfcc100m_ft_in1k", "was trained semi-supervised", NAMES[3]),
        ("resnext101_32x8d_wsl", "was trained weakly supervised", NAMES[2]),
        ("ig_resnext101_32x16d", "was trained weakly supervised", NAMES[3]),
        ("resnext101_32x8d.fb_wsl_ig1b_ft_in1k", "was trained weakly supervised", NAMES[2]),
        ("resnext101_64x4d.c1_in1k", "is a ResNeXt of another shape", NAMES[1]),
        ("seresnext50_32x4d.racm_in1k", "is another network", NAMES[0]),
    ],
)
def test_another_network_is_refused_with_the_reason(name: str, why: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"model: '{name}' {why}.*; the nearest is {nearest}$"):
        swsl.create_model(name, pretrained=False)


def test_what_is_not_a_name_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"")
    for given, advice in (
        ("timm/resnext50_32x4d.fb_swsl_ig1b_ft_in1k", "say hf-hub:timm/resnext50_32x4d.fb_swsl_ig1b_ft_in1k"),
        (str(tmp_path), f"say local-dir:{tmp_path}"),
        (str(tmp_path / "w.pth"), "say it as weights"),
        ("run/best.pth", "there is no variant 'run/best.pth'"),
    ):
        with pytest.raises(ValueError, match=advice):
            find_variant(given)


def test_the_command_line_takes_every_name(weights50: Path, photo: Path, engine: list[str]) -> None:
    """A default model's other names are no second model beside --runner."""
    ours, *others = (
        run(*swsl_command("classify", photo, "--model", name, *engine)).stdout
        for name in swsl.VARIANTS[NAME].names
    )
    assert ours
    assert others == [ours, ours]
    refused = run(*swsl_command("classify", photo, "--model", "resnext50_32x4d_ssl"), code=2).stderr
    assert "was trained semi-supervised" in refused


def test_a_name_as_weights_is_its_variants(monkeypatch: pytest.MonkeyPatch, weights50: Path) -> None:
    monkeypatch.setattr(variants._weights, "download", lambda *_, **__: weights50)
    model = swsl.create_model(NAME, weights="resnext50_32x4d_swsl")
    assert torch.equal(model.fc.weight, swsl.create_model(NAME, weights=weights50).fc.weight)
    with pytest.raises(
        swsl.WeightsError, match=f"resnext50_32x4d_swsl is {NAME}, not {NAMES[2]}; ask for that"
    ):
        swsl.create_model(NAMES[2], weights="resnext50_32x4d_swsl")


# what timm's functions read


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_timms(name: str) -> None:
    with torch.device("meta"):
        ours = swsl.create_model(name, pretrained=False)
        theirs = timm.create_model(swsl.VARIANTS[name].names[1])
    assert ours.pretrained_cfg == theirs.pretrained_cfg
    assert ours.default_cfg is ours.pretrained_cfg
    config = resolve_model_data_config(theirs)
    assert resolve_model_data_config(ours) == resolve_input_data_config(ours) == config
    assert config["interpolation"] == "bilinear"
    assert resolve_model_data_config(ours, use_test_size=True) == config
    assert spec_of(ours) == swsl.VARIANTS[name].preprocess


def saved_and_loaded(model: swsl.ResNeXt) -> swsl.ResNeXt:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def fine_tuned(model: swsl.ResNeXt) -> swsl.ResNeXt:
    model.reset_classifier(7, "avg")
    return model


@pytest.mark.parametrize(
    "change",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded, fine_tuned],
)
def test_the_configuration_survives(change: Callable[[swsl.ResNeXt], swsl.ResNeXt]) -> None:
    model = swsl.create_model(NAME, pretrained=False, num_classes=3)
    expected = resolve_model_data_config(timm.create_model(swsl.VARIANTS[NAME].names[1]))
    changed = change(model)
    assert resolve_model_data_config(changed) == expected
    assert changed.default_cfg is changed.pretrained_cfg
    assert changed.pretrained_cfg["num_classes"] == changed.num_classes == changed.fc.out_features


def test_a_model_with_a_configuration_can_be_captured() -> None:
    model = swsl.create_model(NAME, pretrained=False).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(x)
        assert torch.equal(torch.jit.script(model)(x), expected)
        program = torch.export.export(model, (x,))
        assert torch.allclose(program.module()(x), expected, rtol=1e-4, atol=1e-5)


def test_a_trained_model_tells_timm_of_its_own_preprocessing(tmp_path: Path) -> None:
    spec = swsl.PreprocessSpec((96, 64), 0.95, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    model = seed_model(swsl.ResNeXt((1, 1, 1, 1), 2, 4, 3))
    save_checkpoint(tmp_path / "best.pth", Checkpoint(model, spec, ("a", "b", "c")))
    loaded = load_checkpoint(tmp_path / "best.pth").model
    assert resolve_model_data_config(loaded) == {
        "input_size": (3, 96, 64),
        "interpolation": "bicubic",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "crop_pct": 0.95,
        "crop_mode": "center",
    }
    runner = EagerRunner(loaded)
    assert runner.spec == spec
    assert runner.labels == ("a", "b", "c")
    loaded.reset_classifier(3)  # other classes, whatever their number
    assert "label_names" not in loaded.pretrained_cfg
    assert EagerRunner(loaded).labels == ("0", "1", "2")


@pytest.mark.parametrize("license_", ["CC-BY-NC-4.0", "apache-2.0", None])
def test_a_trained_model_is_of_the_variant_whose_licence_binds_it(
    tmp_path: Path, license_: str | None
) -> None:
    """Others of its architecture, which may have begun from other weights in a folder of timm's, only look like it."""
    model = swsl.create_model(NAME, pretrained=False, num_classes=2)
    save_checkpoint(
        tmp_path / "best.pth", Checkpoint(model, swsl.PreprocessSpec(), ("a", "b"), NAME, license_)
    )
    loaded = load_checkpoint(tmp_path / "best.pth").model
    assert loaded.pretrained_cfg["architecture"] == "resnext50_32x4d"
    published = license_ == "CC-BY-NC-4.0"
    assert hasattr(loaded, "variant") == ("tag" in loaded.pretrained_cfg) == published


def test_the_configuration_of_a_spec_reads_back() -> None:
    spec = swsl.PreprocessSpec((200, 168), 0.9, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    config = timm_config(spec, 5, list("abcde"), tag="mine")
    assert config["pool_size"] == (7, 6)
    assert config["label_names"] == ("a", "b", "c", "d", "e")
    model = swsl.ResNeXt((1, 1, 1, 1), 1, 4, 5)
    model.pretrained_cfg = config
    assert spec_of(model) == spec


@torch.inference_mode()
def test_feature_info_is_that_of_the_feature_maps() -> None:
    model = seed_model(swsl.ResNeXt((1, 2, 1, 1), 4, 4, 10))
    theirs = timm.create_model(swsl.VARIANTS[NAME].names[1]).feature_info
    for mine, other in zip(model.feature_info, theirs, strict=True):
        assert {**mine, "module": ""} == {**other, "module": ""}
        assert model.get_submodule(mine["module"]) is not None
    x = torch.randn(1, 3, 64, 64)
    maps = model.feature_maps(x)
    for info, found in zip(model.feature_info, maps, strict=True):
        assert found.shape == (1, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
    pyramid = timm.models.FeatureListNet(model, out_indices=(1, 3))  # timm's own, of our model
    assert pyramid.feature_info.channels() == [256, 1024]
    for mine, other in zip(pyramid(x), (maps[1], maps[3]), strict=True):
        assert torch.equal(mine, other)


# arguments of timm's


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"features_only": True}, ValueError, "features_only=True: use model.feature_maps"),
        ({"features_only": True, "out_indices": (1,)}, ValueError, "model.forward_intermediates"),
        ({"out_indices": (1, 2)}, ValueError, r"model.feature_maps\(images, stages=…\)"),
        ({"in_chans": 1}, ValueError, "in_chans=1: expected 3"),
        ({"checkpoint_path": "w.pth"}, ValueError, "checkpoint_path='w.pth': use weights="),
        ({"drop_rate": 0.2}, ValueError, "drop_rate=0.2: there is no dropout here"),
        ({"drop_path_rate": 0.1}, ValueError, "no stochastic depth"),
        ({"global_pool": ""}, ValueError, "global_pool='': expected 'avg'"),
        ({"pretrained_cfg": {"file": "w.pth"}}, ValueError, "pretrained_cfg=.*: use weights="),
        ({"num_clases": 3}, TypeError, "num_clases: .*takes pretrained, weights, num_classes and progress"),
    ],
)
def test_arguments_of_timm_say_what_to_use(options: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        swsl.create_model(NAME, pretrained=False, **options)
    with pytest.raises(error, match=message):
        torch.hub.load(str(ROOT), NAME, source="local", pretrained=False, **options)


def test_arguments_of_timm_that_ask_for_what_is_here_are_taken() -> None:
    options = {
        "in_chans": 3,
        "features_only": False,
        "drop_rate": 0.0,
        "global_pool": "avg",
        "checkpoint_path": "",
    }
    with torch.device("meta"):
        assert timm.create_model("resnext50_32x4d", num_classes=3, **options).num_classes == 3
        assert swsl.create_model(NAME, pretrained=False, num_classes=3, **options).num_classes == 3


def test_the_advice_on_dropout_works() -> None:
    with pytest.raises(ValueError, match="drop_rate") as refused:
        swsl.create_model(NAME, pretrained=False, drop_rate=0.2)
    model = swsl.ResNeXt((1, 1, 1, 1), 2, 4, 3)
    names = list(model.state_dict())
    eval(str(refused.value)[str(refused.value).index("model.fc") :], {"torch": torch, "model": model})
    features = torch.ones(4, 2048)
    assert not torch.equal(model.train().fc(features), model.fc(features))
    assert torch.equal(model.eval().fc(features), model.fc(features))
    assert list(model.state_dict()) == names


def test_other_pools_are_refused() -> None:
    model = swsl.ResNeXt((1, 1, 1, 1), 2, 4, 3)
    for pool in ("avg", None):
        model.reset_classifier(4, global_pool=pool)
    for pool in ("", "max", "catavgmax"):
        with pytest.raises(ValueError, match=f"global_pool: expected 'avg' or None, got '{pool}'"):
            model.reset_classifier(5, pool)
    assert model.num_classes == 4
