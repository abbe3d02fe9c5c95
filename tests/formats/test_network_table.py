"""The network table: what it lists, that it computes what the model does, and that no file is written where it does not."""

from __future__ import annotations

import json
import sys
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import run, seed_model
from torch import Tensor, nn

import swsl
from swsl.deploy import export
from swsl.deploy.export import ModelError, default_suffix, export_model, read_metadata, verify
from swsl.deploy.frozen import FrozenRunner
from swsl.deploy.runner import Runner, build_info
from swsl.formats import network_table
from swsl.formats.golden import TOLERANCES, output_error
from swsl.formats.network_table import run_table, unknown_operators

SPEC = swsl.PreprocessSpec((64, 48), 0.9, "bicubic")


def small_model() -> swsl.ResNeXt:
    return seed_model(swsl.ResNeXt((1, 2, 1, 1), 4, 4, 3))


def exported(model: swsl.ResNeXt, path: Path) -> dict:
    export_model(model, path, spec=SPEC, labels="abc")
    return read_metadata(path)["network"]


def check_computes(path: Path, model: swsl.ResNeXt) -> None:
    for shape in ((1, 3, 64, 48), (2, 3, 33, 47)):
        batch = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        logits, features = run_table(path, batch)
        assert output_error(model, batch, logits=logits, features=features) <= TOLERANCES["float32"]


def test_the_table_lists_the_folded_network(tmp_path: Path) -> None:
    table = exported(small_model(), tmp_path / "m.pt")
    operators = table["operators"]
    blocks, stages = 5, 4
    assert Counter(item["operator"] for item in operators) == {
        "conv2d": 1 + 3 * blocks + stages,
        "relu": 1 + 3 * blocks,
        "add": blocks,
        "max_pool2d": 1,
        "adaptive_avg_pool2d": 1,
        "flatten": 1,
        "linear": 1,
    }
    assert (table["logits"], table["features"]) == (len(operators), len(operators) - 1)
    assert [item["operator"] for item in operators[:3]] == ["conv2d", "relu", "max_pool2d"]
    first = operators[0]
    attributes = {key: value for key, value in first.items() if key not in ("weight", "bias")}
    assert attributes == {
        "operator": "conv2d", "inputs": [0], "stride": [2, 2], "padding": [3, 3], "dilation": [1, 1], "groups": 1,
    }  # fmt: skip
    assert (first["weight"]["shape"], first["bias"]["shape"]) == ([64, 3, 7, 7], [64])
    assert operators[2] == {
        "operator": "max_pool2d", "inputs": [2], "kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1],
    }  # fmt: skip
    assert operators[-3:-1] == [
        {
            "operator": "adaptive_avg_pool2d",
            "inputs": [len(operators) - 3],
            "output_size": [1, 1],
        },
        {"operator": "flatten", "inputs": [len(operators) - 2]},
    ]
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        for item in operators:
            for part in ("weight", "bias"):
                if item.get(part):
                    info = archive.getinfo(f"m/{item[part]['entry']}")
                    assert info.compress_type == zipfile.ZIP_STORED
                    assert item[part]["crc32"] == info.CRC
                    assert info.file_size == 4 * torch.Size(item[part]["shape"]).numel()
    check_computes(tmp_path / "m.pt", small_model())


def test_weights_of_any_layout_are_stored_as_the_table_says(tmp_path: Path) -> None:
    model = small_model().to(memory_format=torch.channels_last)
    assert not model.conv1.weight.is_contiguous()
    exported(model, tmp_path / "m.pt")
    check_computes(tmp_path / "m.pt", small_model())


def test_zeros_of_either_sign_are_stored_as_the_table_says(tmp_path: Path) -> None:
    model = small_model()
    for block in model.layer2:  # of two, whose convolutions are of one shape
        block.bn3.weight.data *= 0
    model.layer2[1].conv3.weight.data *= -1
    exported(model, tmp_path / "m.pt")
    check_computes(tmp_path / "m.pt", model)


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_branches_that_begin_as_zeros_are_stored_once(suffix: str, tmp_path: Path) -> None:
    """As timm's are before any training: TorchScript has one entry for all that are equal."""
    model = seed_model(swsl.ResNeXt((1, 1, 8, 4), 8, 4, 3))
    for stage in (model.layer3, model.layer4):
        for block in stage:
            block.bn3.weight.data *= 0
            block.bn3.bias.data *= 0
    path = tmp_path / f"m{suffix}"
    exported(model, path)
    check_computes(path, model)
    if build_info()["compiled"]:
        batch = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(3))
        assert output_error(model, batch, logits=Runner(path).forward(batch)) <= TOLERANCES["float32"]


def changed(name: str, module: nn.Module) -> swsl.ResNeXt:
    model = small_model()
    setattr(model, name, module)
    return model


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x + 1, 0.5).relu()


KNOWN = [
    nn.AvgPool2d(3, 2, 1),
    nn.AvgPool2d(2, 2, count_include_pad=False),
    nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    nn.MaxPool2d((2, 3), (2, 1), (0, 1)),
    nn.Sequential(nn.Dropout(), nn.Conv2d(64, 64, 3, 2, 2, dilation=2, groups=8, bias=False), nn.Identity()),
]


@pytest.mark.parametrize("pool", KNOWN, ids=str)
def test_other_layers_that_engines_have(pool: nn.Module, tmp_path: Path) -> None:
    model = changed("maxpool", pool).eval()
    assert not unknown_operators(exported(model, tmp_path / "m.pt"))
    check_computes(tmp_path / "m.pt", model)
    assert verify(tmp_path / "m.pt") <= TOLERANCES["float32"]


UNKNOWN = [
    ("relu", nn.SiLU(), "silu"),
    ("maxpool", nn.MaxPool2d(3, 2, 1, ceil_mode=True), "max_pool2d with ceil_mode"),
    ("maxpool", nn.MaxPool2d(3, 2, 1, dilation=2), "max_pool2d with dilation"),
    (
        "maxpool",
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        "avg_pool2d with padding that is not counted",
    ),
    ("maxpool", nn.AvgPool2d(2, divisor_override=3), "avg_pool2d with divisor_override"),
    ("maxpool", nn.Conv2d(64, 64, 3, padding="same"), "conv2d with padding of another kind, same zeros"),
    ("maxpool", nn.GroupNorm(4, 64), "groupnorm"),
    ("maxpool", Shift(), "clamp, which is no layer"),
]


@pytest.mark.parametrize(("name", "module", "operator"), UNKNOWN, ids=[operator for *_, operator in UNKNOWN])
def test_what_no_engine_has_is_listed_by_its_name(
    name: str, module: nn.Module, operator: str, tmp_path: Path
) -> None:
    model = changed(name, module).eval()
    table = exported(model, tmp_path / "m.pt")
    assert operator in unknown_operators(table)
    found = [item for item in table["operators"] if item["operator"] == operator]
    assert set(found[0]) == {"operator", "inputs"}
    assert verify(tmp_path / "m.pt") <= TOLERANCES["float32"]
    with pytest.raises(ModelError, match=r"m\.pt: only TorchScript runs its operator "):
        run_table(tmp_path / "m.pt", torch.zeros(1, 3, 64, 48))


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x


def test_a_model_that_cannot_be_listed_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"m\.pt: not written, since torch\.fx cannot list the model's operators"
    ):
        exported(changed("maxpool", Branch()), tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def relu_left_out(*arguments: object) -> dict:
        table = network_table.make_table(*arguments)
        place = [number for number, item in enumerate(table["operators"]) if item["operator"] == "relu"][3]
        (before,) = table["operators"][place]["inputs"]
        for item in table["operators"][place + 1 :]:
            item["inputs"] = [before if value == place + 1 else value for value in item["inputs"]]
        return table

    monkeypatch.setattr(export, "make_table", relu_left_out)
    with pytest.raises(
        ModelError, match=r"m\.pt: not written, since the network table's answers to an input"
    ):
        exported(small_model(), tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_torchscript_does_not_store_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze = export._frozen

    def other(folded: nn.Module) -> object:
        return freeze(export._fold_batch_norms(changed("fc", nn.Linear(2048, 3))))

    monkeypatch.setattr(export, "_frozen", other)
    with pytest.raises(
        ModelError, match=r"m\.pt: not written, since PyTorch has not stored fc\.weight as it is"
    ):
        exported(small_model(), tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("my model.pt", "my model"),
        ("v1.2.pt", "v1.2"),
        ("zwölf.pt", "zwölf"),
        ("a\\b.pt", "a_b"),
        ("...pt", "model"),
    ],
)
def test_the_archives_folder_is_named_after_the_model(name: str, folder: str, tmp_path: Path) -> None:
    exported(small_model(), tmp_path / name)
    with zipfile.ZipFile(tmp_path / name) as archive:
        assert {entry.split("/")[0] for entry in archive.namelist()} == {folder}
    assert [path.name for path in tmp_path.iterdir()] == [name]
    torch.jit.load(str(tmp_path / name))


def test_a_published_models_folder_has_its_name(frozen50: Path) -> None:
    with zipfile.ZipFile(frozen50) as archive:
        assert archive.namelist()[0] == "swsl_resnext50_32x4d/extra/swsl.json"


@pytest.mark.parametrize("step", ["_frozen", "make_table", "_compare"])
def test_a_stopped_export_leaves_what_was_there(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, step, stop)
    (tmp_path / "m.pt").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        exported(small_model(), tmp_path / "m.pt")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.pt", "before")]


def test_inputs_too_large_for_a_golden_check_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="spec: expected an input_size of at most 1024 pixels a side"):
        export_model(small_model(), tmp_path / "m.pt", spec=swsl.PreprocessSpec((32, 1025)), labels="abc")


@pytest.mark.parametrize("missing", ["torch.jit.script", "Python"])
def test_without_torchscript_everything_but_exporting_works(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_suffix() == ".pt"
    exported(small_model(), tmp_path / "m.pt")
    exported(changed("relu", nn.SiLU()).eval(), tmp_path / "silu.pt")
    if missing == "Python":
        monkeypatch.setattr(export, "sys", SimpleNamespace(version_info=(3, 14, 0)))
    else:
        monkeypatch.delattr(torch.jit, "script")
    assert default_suffix() == ".pt2"
    with pytest.raises(
        ModelError,
        match=r"other\.pt: not written, since a \.pt needs TorchScript, .* Python 3\.13 or older .*; or name a \.pt2 file",
    ):
        exported(small_model(), tmp_path / "other.pt")
    assert FrozenRunner(tmp_path / "m.pt").info.name == "table"
    assert verify(tmp_path / "m.pt") <= TOLERANCES["float32"]  # by the table
    check_computes(tmp_path / "m.pt", small_model())
    with pytest.raises(ModelError, match=r"silu\.pt: only TorchScript runs its operator silu"):
        verify(tmp_path / "silu.pt")  # by nothing


def test_no_import_needs_torchscript(tmp_path: Path) -> None:
    exported(small_model(), tmp_path / "m.pt")
    code = (
        "import json, sys, torch\n"
        "del torch.jit\n"
        "import swsl, swsl.deploy.runner, swsl.cli.main\n"
        "from swsl.deploy.export import read_metadata\n"
        "from swsl.formats.network_table import run_table\n"
        "swsl.EagerRunner, swsl.create_model('swsl_resnext50_32x4d', pretrained=False)\n"
        "logits, _ = run_table(sys.argv[1], torch.zeros(1, 3, 64, 48))\n"
        "print(json.dumps([read_metadata(sys.argv[1])['labels'], list(logits.shape)]))\n"
    )
    found = run(sys.executable, "-c", code, tmp_path / "m.pt").stdout
    assert json.loads(found) == [["a", "b", "c"], [1, 3]]
