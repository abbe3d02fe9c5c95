"""`swsl export --from`: networks of timm and torchvision, which run as they do there, on images that are prepared as there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROOT, seed_model
from PIL import Image
from torch import nn

import swsl
from swsl.cli.foreign import Foreign, load_foreign
from swsl.cli.main import main
from swsl.deploy.export import ModelError, export_model, read_metadata, verify
from swsl.deploy.runner import Runner, build_info
from swsl.formats.golden import TOLERANCES, logits_error, logits_scale
from swsl.formats.network_table import run_table
from swsl.labels import LABELS
from swsl.weights import WeightsError

pytest.importorskip("timm")
PHOTO = ROOT / "swsl" / "cli" / "chelsea.jpg"


def seeded(source: str, **options: bool) -> Foreign:
    found = load_foreign(source, pretrained=False, **options)
    seed_model(found.model)
    return found


def check_computes(path: Path, model: nn.Module, shape: tuple[int, ...]) -> None:
    """By the table and in the compiled runner."""
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = model.eval()(batch)
    golden = read_metadata(path)["golden"]
    logits, features = run_table(path, batch)
    scale = logits_scale(golden["weight_norms"], golden["biases"], features)
    assert logits_error(logits, expected, scale) <= TOLERANCES["float32"]
    if build_info()["compiled"]:
        runner = Runner(path)
        assert runner.info.name == "planned"
        assert logits_error(runner.forward(batch), expected, scale) <= TOLERANCES["float32"]


NETWORKS = (
    "torchvision:resnet18",
    "timm:resnet18.a1_in1k",
    "timm:resnet26t.ra2_in1k",  # three convolutions before the pool, average pools in the shortcuts
    "torchvision:resnet34",
    "torchvision:resnet50.IMAGENET1K_V1",
    "timm:resnet50.a1_in1k",
    "timm:resnet50d.ra2_in1k",
    "timm:resnext50_32x4d.a1h_in1k",
    "torchvision:resnext50_32x4d",
    "torchvision:wide_resnet50_2",
    "timm:resnet101.tv_in1k",
    "torchvision:resnet152",
)


QUICK = {("torchvision:resnet18", ".pt"), ("torchvision:resnet18", ".pt2")}
CASES = [
    pytest.param(source, suffix, marks=[] if (source, suffix) in QUICK else [pytest.mark.slow])
    for source in NETWORKS
    for suffix in (".pt", ".pt2")
]


@pytest.mark.parametrize(("source", "suffix"), CASES)
def test_they_compute_what_they_do_there(source: str, suffix: str, tmp_path: Path) -> None:
    found = seeded(source)
    path = tmp_path / f"m{suffix}"
    export_model(found.model, path, spec=swsl.PreprocessSpec((64, 64)))
    assert verify(path) <= TOLERANCES["float32"]
    for shape in ((2, 3, 64, 64), (1, 3, 75, 57)):
        check_computes(path, found.model, shape)


@pytest.mark.slow
def test_at_288_pixels_bicubic(tmp_path: Path) -> None:
    found = seeded("timm:resnet50.a1_in1k", test_size=True)
    assert (found.spec.input_size, found.spec.interpolation, found.spec.crop_pct) == (
        (288, 288),
        "bicubic",
        1.0,
    )
    export_model(found.model, tmp_path / "m.pt", spec=found.spec)
    check_computes(tmp_path / "m.pt", found.model, (1, 3, 288, 288))


@pytest.mark.parametrize("source", NETWORKS)
def test_images_are_prepared_as_there(source: str) -> None:
    import timm
    from torchvision import models

    library, _, name = source.partition(":")
    found = load_foreign(source, pretrained=False)
    if library == "timm":
        theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(found.model))
    else:
        network, _, tag = name.partition(".")
        theirs = models.get_model_weights(network)[tag or "DEFAULT"].transforms()
    photo = Image.open(PHOTO)
    assert torch.equal(swsl.preprocess(photo, found.spec), theirs(photo))
    assert found.labels == LABELS


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = seeded("torchvision:resnet18")
    weights, path = tmp_path / "seeded.pth", tmp_path / "m.pt"
    torch.save(found.model.state_dict(), weights)
    assert main(["export", "--from", "torchvision:resnet18", "--weights", str(weights), "-o", str(path)]) == 0
    assert (
        "m.pt: torchvision:resnet18, 47 MB, weights of a licence that is not stated"
        in capsys.readouterr().out
    )
    metadata = read_metadata(path)
    assert metadata["architecture"] == {
        "layers": None,
        "groups": None,
        "width_per_group": None,
        "num_classes": 1000,
    }
    assert metadata["weights_sha256"] == swsl.weights.file_sha256(weights)
    assert swsl.PreprocessSpec(**metadata["preprocess"]) == found.spec
    assert (metadata["variant"], metadata["license"], tuple(metadata["labels"])) == (None, None, LABELS)
    check_computes(path, found.model, (2, 3, 224, 224))
    assert main(["classify", str(PHOTO), "--runner", str(path)]) == (0 if build_info()["compiled"] else 1)


WRONG = [
    (["--from", "timm:resnet5"], "timm:resnet5: timm has no such network; the nearest: resnet50"),
    (
        ["--from", "torchvision:resnet50.V3"],
        "torchvision has no such weights; expected one of IMAGENET1K_V1, IMAGENET1K_V2",
    ),
    (["--from", "keras:resnet50"], "--from: expected timm:NAME or torchvision:NAME, got 'keras:resnet50'"),
    (["--from", "timm:resnet18.none", "--no-pretrained"], "timm cannot make it: Invalid pretrained tag"),
    (["--from", "torchvision:resnet18", "--test-size"], "--test-size: timm's networks have one"),
    (
        ["--from", "torchvision:vgg11", "--no-pretrained"],
        r"m.pt: not written, since the model computes aten.adaptive_avg_pool2d",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_what_cannot_be_had_is_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["export", *arguments, "-o", str(tmp_path / "m.pt")]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.glob("m*")) == []


@pytest.mark.parametrize(
    "arguments",
    [[], ["swsl_resnext50_32x4d", "--from", "timm:resnet18"], ["swsl_resnext50_32x4d", "--test-size"]],
)
def test_one_model_is_asked_for(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", *arguments])
    assert stopped.value.code == 2


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(seeded("torchvision:resnet18").model.state_dict(), tmp_path / "18.pth")
    with pytest.raises(WeightsError, match=r"18\.pth does not fit timm:resnet26t: Error"):
        load_foreign("timm:resnet26t", weights=tmp_path / "18.pth")


class Own(nn.Module):
    """A network as somebody may write it."""

    def __init__(self, head: nn.Module, scale: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5))
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(16))
        self.head, self.scale = head, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(self.body(x) + x).contiguous()
        if self.scale:
            x = x * 2
        x = x.mean([-2, -1])
        return self.head(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_any_network_of_these_operators(suffix: str, tmp_path: Path) -> None:
    model = seed_model(Own(nn.Linear(16, 4, bias=False)))
    model.body[1].weight = model.body[1].bias = None
    path = tmp_path / f"m{suffix}"
    export_model(model.train(), path, spec=swsl.PreprocessSpec((48, 64)), labels="abcd")
    assert model.training
    for shape in ((2, 3, 48, 64), (1, 3, 33, 47)):
        check_computes(path, model, shape)


OTHERS = [
    (Own(nn.Linear(16, 4), scale=True), "computes aten.mul.Tensor, which swsl's engines do not have"),
    (
        Own(nn.Sequential(nn.Linear(16, 4), nn.Softmax(1))),
        "computes aten.softmax.int in its head.1, which swsl's",
    ),
    (Own(nn.Sequential(nn.Linear(16, 4), nn.ReLU())), "does not end in one linear layer"),
    (
        nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)),
        "aten.batch_norm.default that does not follow",
    ),
]


@pytest.mark.parametrize(("model", "message"), OTHERS, ids=[message for _, message in OTHERS])
def test_what_engines_do_not_have_is_named(model: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"m\.pt: not written, since the model .*{message}"):
        export_model(model, tmp_path / "m.pt", spec=swsl.PreprocessSpec((48, 64)), labels="abcd")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_does_more_than_its_operators_say_is_not_written(tmp_path: Path) -> None:
    class Counting(Own):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shift = 0.0 if torch.compiler.is_compiling() else 1.0
            return super().forward(x + shift if shift else x)

    with pytest.raises(
        ModelError, match=r"m\.pt: not written, since the layers that torch\.export lists give answers"
    ):
        export_model(
            seed_model(Counting(nn.Linear(16, 4))),
            tmp_path / "m.pt",
            spec=swsl.PreprocessSpec((48, 64)),
            labels="abcd",
        )
