"""Checkpoints as training programs save them: the network that is taken, what is said of it, and what stands beside it."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import re
import sys
import threading
import types
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import SMALL, file_of, read_and_listen, same_tensors, seed_model, small_model

import swsl
from swsl import weights
from swsl.cli.main import main
from swsl.resnext import ResNeXt
from swsl.state_dicts import read_state_dict
from swsl.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from swsl.training.recipe import TrainOptions
from swsl.training.train import finetune

State = dict[str, Any]


def under(prefix: str, state: State) -> State:
    return OrderedDict((prefix + key, value) for key, value in state.items())


def other(state: State) -> State:
    """The same names, another network."""
    return {key: value + 1 for key, value in state.items()}


def kinds(state: State) -> dict[str, tuple[object, str]]:
    """The content of files, and what is said of them; every one holds ``state``, and where it holds another network, too."""
    args = argparse.Namespace(lr=0.1, data=Path("data"), opt_betas=None)
    optimizer = torch.optim.SGD(small_model().parameters(), lr=numpy.float64(0.1)).state_dict()
    return {
        "timm train.py": (
            {"epoch": 3, "arch": "x", "state_dict": other(state), "optimizer": optimizer, "version": 2,
             "args": args, "state_dict_ema": state, "metric": numpy.float32(80.1)},
            "took state_dict_ema, the moving average of state_dict",
        ),
        "torchvision references": ({"model": state, "optimizer": optimizer, "args": args}, "took model"),
        "torchvision references, EMA": (
            {"model": other(state), "args": args, "model_ema": {"n_averaged": torch.tensor(5), **under("module.", state)}},
            "took model_ema/module.*, the moving average of model; left out 1 other tensor (n_averaged)",
        ),
        "EMA alone": ({"state_dict_ema": under("module.", state)}, "took state_dict_ema/module.*"),
        "no EMA after all": ({"state_dict": state, "state_dict_ema": None}, "took state_dict"),
        "AveragedModel": (
            torch.optim.swa_utils.AveragedModel(loaded(state)).state_dict(),
            "took module.*; left out 1 other tensor (n_averaged)",
        ),
        "DataParallel": (under("module.", state), "took module.*"),
        "torch.compile": (under("_orig_mod.", state), "took _orig_mod.*"),
        "both": (under("module._orig_mod.", state), "took module._orig_mod.*"),
        "parts compiled": (
            {re.sub(r"(layer[12])\.", r"\1._orig_mod.", key): value for key, value in under("model.", state).items()},
            "took model.*",
        ),
        "Lightning": (
            {"state_dict": under("model._orig_mod.", state) | {"criterion.weight": torch.ones(3)}, "loops": {}},
            "took state_dict/model._orig_mod.*; left out 1 other tensor (criterion.weight)",
        ),
        "Lightning, EMA": (
            {"state_dict": under("net.", other(state)) | under("net_ema.module.", state) | {"mean": torch.ones(3)}},
            "took state_dict/net_ema.module.*, the moving average of state_dict/net.*; left out 1 other tensor (mean)",
        ),
        "PyTorch's tutorial": ({"epoch": 3, "model_state_dict": state, "loss": torch.ones(1)}, "took model_state_dict"),
        "self-supervised": (
            {"model": under("backbone.encoder.", state) | under("head.", {"0.weight": torch.ones(2), "0.bias": torch.ones(2),
             "2.weight": torch.ones(2), "2.bias": torch.ones(2)})},
            "took model/backbone.encoder.*; left out 4 other tensors (head.0.weight, head.0.bias, head.2.weight, …)",
        ),
        "nested": ({"classy": {"base": {"model": {"trunk": under("_feature_blocks.", state)}}}},
                   "took classy/base/model/trunk/_feature_blocks.*"),
        "one dict twice": ({"model": state, "best": state}, "took model"),
    }  # fmt: skip


def loaded(state: State) -> ResNeXt:
    model = small_model()
    model.load_state_dict(state)
    return model


KINDS = tuple(kinds(dict(small_model().state_dict())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_what_training_programs_save(kind: str, layout: str, state: State, tmp_path: Path) -> None:
    content, taken = kinds(state)[kind]
    path = file_of(content, tmp_path, _use_new_zipfile_serialization=layout == "zip")
    found, said = read_and_listen(path)
    assert same_tensors(found, state)
    assert said == [taken]
    assert find_checkpoint(path) is None


def test_the_average_is_chosen_as_timm_chooses(state: State, tmp_path: Path) -> None:
    from timm.models import load_state_dict

    for key in ("state_dict_ema", "model_ema"):
        content = {"state_dict": other(state), key: under("module._orig_mod.", state)}
        path = file_of(content, tmp_path)
        assert same_tensors(read_and_listen(path)[0], load_state_dict(str(path)))


def saved_as(module: str, name: str, base: type, monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that pickles as one of a package that need not be installed."""
    made = type(name, (base,), {"__module__": module})
    parts = module.split(".")
    for count in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), types.ModuleType(parts[count - 1]))
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: made}))
    return made


def test_harmless_types_load_without_their_packages(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as saving:
        attributes = saved_as("lightning.fabric.utilities.data", "AttributeDict", dict, saving)
        settings = saved_as("yacs.config", "CfgNode", dict, saving)(lr=0.1)
        settings.__dict__["frozen"] = True
        content = {
            "state_dict": state,
            "hyper_parameters": attributes(lr=0.1, nested=attributes(a=1)),
            "hparams_type": attributes,
            "cfg": settings,
            "numpy": [
                numpy.float64(3), numpy.int64(3), numpy.bool_(True), numpy.str_("a"), numpy.arange(3), numpy.float16,
                numpy.dtype("float32"), type(numpy.dtype("int32")), numpy.array([None, {}], dtype=object),
                numpy.zeros(2, dtype=[("a", "f4")]), numpy.datetime64("2026-01-01"), numpy.random.RandomState(0).get_state(),
            ],
            "standard": [
                pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("a"), Path("a"), datetime.datetime.now(datetime.timezone.utc),
                datetime.timedelta(1), collections.defaultdict(list, {"a": [1]}), collections.Counter("aab"),
                collections.deque([1, 2], maxlen=2), types.SimpleNamespace(a=1), frozenset([1]), {1}, b"", b"a", 1j, range(3),
                torch.__version__, torch.float16, torch.Size([1]),
            ],
        }  # fmt: skip
        path = file_of(content, tmp_path, _use_new_zipfile_serialization=False)
    monkeypatch.setitem(sys.modules, "numpy", None)
    data = path.read_bytes()
    for core in (
        b"numpy._core.",
        b"numpy.core.",
    ):  # as numpy 2 and numpy 1 write it; nothing else tells them apart
        path.write_bytes(re.sub(rb"cnumpy\._?core\.", b"c" + core, data))
        assert b"c" + core + b"multiarray\nscalar" in path.read_bytes()
        assert same_tensors(read_and_listen(path)[0], state)


def test_several_networks_are_listed(state: State, tmp_path: Path) -> None:
    third = {key: value + 2 for key, value in state.items()}
    for content, names in (
        (
            under("encoder_q.", state) | under("encoder_k.", other(state)),
            r"2 networks: encoder_q.\*, encoder_k.\*",
        ),
        (
            {"student": under("module.", state), "teacher": other(state)},
            r"2 networks: student/module.\*, teacher",
        ),
        ({"a_ema": state, "b_ema": other(state)}, "2 networks: a_ema, b_ema"),
        ({"model": state, "model_ema": other(state), "best": third}, "3 networks: model, model_ema, best"),
        (state | under("_orig_mod.", other(state)), r"2 networks: the names without a prefix, _orig_mod.\*"),
    ):
        with pytest.raises(
            swsl.WeightsError, match=f"holds {names}; expected one: save the one that you want"
        ):
            read_state_dict(file_of(content, tmp_path))


def test_nothing_under_the_prefix_is_left_out(state: State, tmp_path: Path) -> None:
    extra = {"model.projector.weight": torch.ones(2), "loss.weight": torch.ones(2)}
    found, said = read_and_listen(file_of({"state_dict": under("model.", state) | extra}, tmp_path))
    assert said == ["took state_dict/model.*; left out 1 other tensor (loss.weight)"]
    with pytest.raises(swsl.WeightsError, match=r"1 unexpected \(projector.weight\)"):
        weights.load_into(small_model(), found, "w.pth")


def test_a_backbone_without_a_classifier(state: State, tmp_path: Path) -> None:
    content = {f"backbone.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    found, _ = read_and_listen(file_of(content, tmp_path))
    weights.load_into(small_model(0), found, "w.pth")
    for classes in (5, 1000):
        with pytest.raises(swsl.WeightsError, match=r"2 missing \(fc.weight, fc.bias\); .*say num_classes=0"):
            weights.load_into(small_model(classes), found, "w.pth")


def test_our_own_checkpoints_hold_one_network(state: State, tmp_path: Path) -> None:
    path, model = tmp_path / "last.pth", loaded(state)
    labels = tuple("abcde")
    spec = swsl.PreprocessSpec()
    save_checkpoint(path, Checkpoint(model, spec, labels, training={"average": other(state)}))
    found, said = read_and_listen(path)
    assert same_tensors(found, state)
    assert said == []


def test_reading_leaves_torchs_list_of_safe_types_alone(state: State, tmp_path: Path) -> None:
    path = file_of({"model": state, "args": argparse.Namespace(a=1)}, tmp_path)
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_and_listen(path)
        assert set(torch.serialization.get_safe_globals()) == before | {argparse.Namespace}
        assert torch.load(path, weights_only=True)["args"] == argparse.Namespace(a=1)
    with pytest.raises(swsl.WeightsError):
        read_state_dict(file_of({"model": state, "args": small_model()}, tmp_path))
    assert set(torch.serialization.get_safe_globals()) == before


def test_threads_may_read_at_once(state: State, tmp_path: Path) -> None:
    path = file_of({"model": state, "args": argparse.Namespace(a=1)}, tmp_path)
    failed = []

    def read_often() -> None:
        try:
            for _ in range(10):
                read_state_dict(path)
        except Exception as error:
            failed.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=read_often) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


def test_another_pickle_protocol_is_named(state: State, tmp_path: Path) -> None:
    with pytest.raises(
        swsl.WeightsError, match="another protocol than torch.save's own; .*leave out pickle_protocol="
    ):
        read_and_listen(file_of(state, tmp_path, pickle_protocol=4))


# in the commands


@pytest.mark.slow
def test_training_goes_on_from_timms_checkpoint(
    options: TrainOptions, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    start = seed_model(ResNeXt(SMALL.layers, SMALL.groups, SMALL.width_per_group, 1000)).state_dict()
    content = {
        "state_dict": other(start),
        "state_dict_ema": under("module.", start),
        "args": argparse.Namespace(lr=0.1),
    }
    path = file_of(content, tmp_path)
    begun = replace(options, scratch=False, weights=str(path), freeze_backbone=True, epochs=1)
    with pytest.warns(
        UserWarning, match=r"took state_dict_ema/module\.\*, the moving average of state_dict$"
    ):
        finetune(begun)
    trained = load_checkpoint(options.output / "last.pth").model.state_dict()
    assert torch.equal(trained["layer3.0.conv2.weight"], start["layer3.0.conv2.weight"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default:weights:UserWarning")
def test_classify_says_what_it_took(
    model50: ResNeXt, engine: list[str], photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, state = tmp_path / "lightning.ckpt", model50.state_dict()
    torch.save(
        {"state_dict": under("model.", state), "hyper_parameters": argparse.Namespace(lr=numpy.float64(1))},
        path,
    )
    assert main(["classify", str(photo), "--weights", str(path)]) == 0
    wrapped = capsys.readouterr()
    assert f"swsl: warning: --weights: {path}: took state_dict/model.*\n" in wrapped.err
    assert main(["classify", str(photo), *engine]) == 0
    said = capsys.readouterr()
    assert said.out == wrapped.out
    assert "warning" not in said.err
