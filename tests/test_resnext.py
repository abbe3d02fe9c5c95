"""The architecture, against timm and torchvision, and under every way PyTorch has to capture it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from conftest import NAMES, seed_model, seeded_model
from torchvision.models.feature_extraction import create_feature_extractor

import swsl
from swsl.resnext import ResNeXt

TIMM_NAMES = {
    "swsl_resnext50_32x4d": "resnext50_32x4d.fb_swsl_ig1b_ft_in1k",
    "swsl_resnext101_32x4d": "resnext101_32x4d.fb_swsl_ig1b_ft_in1k",
    "swsl_resnext101_32x8d": "resnext101_32x8d.fb_swsl_ig1b_ft_in1k",
    "swsl_resnext101_32x16d": "resnext101_32x16d.fb_swsl_ig1b_ft_in1k",
}


def small(num_classes: int = 10) -> ResNeXt:
    return seed_model(ResNeXt((1, 2, 1, 1), groups=4, width_per_group=4, num_classes=num_classes))


@pytest.mark.parametrize(
    "name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
)
@torch.inference_mode()
def test_equals_timm(name: str) -> None:
    ours, theirs = seeded_model(name), timm.create_model(TIMM_NAMES[name], pretrained=False).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.forward_features(x), theirs.forward_features(x))
    assert torch.equal(
        ours.forward_head(ours.forward_features(x), pre_logits=True),
        theirs.forward_head(theirs.forward_features(x), pre_logits=True),
    )
    _, maps = theirs.forward_intermediates(x)
    for mine, other in zip(ours.feature_maps(x), maps, strict=True):
        assert torch.equal(mine, other)


def small_pair() -> tuple[ResNeXt, timm.models.ResNet]:
    ours = small()
    theirs = timm.models.ResNet(
        timm.models.resnet.Bottleneck, (1, 2, 1, 1), cardinality=4, base_width=4, num_classes=10
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs.eval()


@torch.inference_mode()
def test_feature_maps_are_timms_index_by_index() -> None:
    ours, theirs = small_pair()
    pyramid = timm.models.FeatureListNet(theirs)  # what features_only=True makes
    assert [each["num_chs"] for each in theirs.feature_info] == [64, 256, 512, 1024, 2048]
    x = torch.randn(2, 3, 96, 64)
    for mine, other in zip(ours.feature_maps(x), pyramid(x), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"indices": 2},
        {"indices": [3, 0, -1]},
        {"indices": (-4,), "stop_early": True},
        {"indices": [0], "stop_early": True, "norm": True},
        {"indices": 3, "intermediates_only": True, "output_fmt": "NCHW"},
    ],
)
@torch.inference_mode()
def test_intermediates_are_timms(options: dict[str, object]) -> None:
    ours, theirs = small_pair()
    x = torch.randn(2, 3, 96, 64)

    def flat(found: object) -> list[torch.Tensor]:
        return found if isinstance(found, list) else [found[0], *found[1]]

    mine, others = ours.forward_intermediates(x, **options), theirs.forward_intermediates(x, **options)
    assert type(mine) is type(others)
    for map_, other in zip(flat(mine), flat(others), strict=True):
        assert torch.equal(map_, other)


@pytest.mark.parametrize("coarse", [False, True])
def test_layers_are_grouped_by_depth_as_timms(coarse: bool) -> None:
    ours, theirs = swsl.ResNeXt((3, 4, 6, 3), 32, 4), timm.create_model("resnext50_32x4d")
    assert timm.models.group_parameters(ours, ours.group_matcher(coarse)) == timm.models.group_parameters(
        theirs, theirs.group_matcher(coarse)
    )


@pytest.mark.parametrize("method", ["forward_intermediates", "get_classifier", "set_grad_checkpointing"])
def test_methods_are_called_as_timms(method: str) -> None:
    def arguments(of: type) -> list[tuple[str, object]]:
        return [(p.name, p.default) for p in inspect.signature(getattr(of, method)).parameters.values()]

    assert arguments(ResNeXt) == arguments(timm.models.ResNet)


def test_impossible_intermediates_are_refused() -> None:
    x = torch.randn(1, 3, 32, 32)
    for wrong in (0, 6, -1, [], [5], [-6]):
        with pytest.raises(ValueError, match="indices: expected 1 to 5, or some of 0 to 4 "):
            small().forward_intermediates(x, wrong)
    with pytest.raises(ValueError, match="output_fmt: expected 'NCHW', got 'NLC'"):
        small().forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("swsl_resnext50_32x4d", torchvision.models.resnext50_32x4d),
        pytest.param("swsl_resnext101_32x8d", torchvision.models.resnext101_32x8d, marks=pytest.mark.slow),
        pytest.param(
            "swsl_resnext101_32x4d",
            lambda: torchvision.models.ResNet(
                torchvision.models.resnet.Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
@torch.inference_mode()
def test_equals_torchvision(name: str, build: object) -> None:
    ours, theirs = seeded_model(name), build().eval()
    assert list(theirs.state_dict()) == list(ours.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_published_ones(name: str) -> None:
    variant = swsl.VARIANTS[name]
    with torch.device("meta"):
        model = ResNeXt(variant.layers, variant.groups, variant.width_per_group)
    assert sum(parameter.numel() for parameter in model.parameters()) == variant.parameters
    macs = 0

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(count)
    model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    assert macs == variant.macs


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 95), (224, 160)])
@torch.inference_mode()
def test_feature_maps_have_the_documented_shapes(height: int, width: int) -> None:
    model, x = small(), torch.randn(1, 3, height, width)
    for stage, found in enumerate(model.feature_maps(x)):
        stride = 2 ** (stage + 1)
        channels = 128 * 2**stage if stage else 64
        assert found.shape == (1, channels, -(-height // stride), -(-width // stride))
    third, stem = model.feature_maps(x, stages=(3, 0))
    assert torch.equal(third, model.feature_maps(x)[3])
    assert torch.equal(stem, model.feature_maps(x)[0])
    assert torch.equal(model.feature_maps(x, [4])[0], model.forward_features(x))
    for wrong in ((), (-1,), (5,)):
        with pytest.raises(ValueError, match="stages: expected some of 0, 1, 2, 3, 4"):
            model.feature_maps(x, wrong)


@torch.inference_mode()
def test_batches_of_any_size() -> None:
    model, x = small(), torch.randn(3, 3, 64, 64)
    assert model(x[:0]).shape == (0, 10)
    assert torch.allclose(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_classifier_can_be_replaced_or_absent() -> None:
    model, x = small(num_classes=0), torch.randn(2, 3, 64, 64)
    pooled = model(x)
    assert pooled.shape == (2, 2048)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (2, 7)
    assert model.get_classifier() is model.get_submodule(model.get_classifier(name_only=True))
    assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), pooled)
    for wrong in (-1, 2.5, "10"):
        with pytest.raises(ValueError, match="num_classes: expected a whole number of 0 or more, got "):
            model.reset_classifier(wrong)


def test_new_classifier_follows_dtype() -> None:
    model = small().to(torch.bfloat16)
    model.reset_classifier(3)
    assert model.fc.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "arguments", [((1, 1, 1), 32, 4), ((1, 1, 0, 1), 32, 4), ((1, 1, 1, 1), 0, 4), ((1, 1, 1, 1), 32, 0)]
)
def test_impossible_architectures_are_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="expected"):
        ResNeXt(*arguments)


@torch.inference_mode()
def test_script_export_and_fx_agree_with_eager() -> None:
    model, x = small(), torch.randn(2, 3, 64, 96)
    expected = model(x)
    scripted = torch.jit.script(model)
    assert torch.allclose(scripted(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(torch.jit.freeze(scripted)(x), expected, rtol=1e-4, atol=1e-5)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}})
    assert torch.allclose(exported.module()(x[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    traced = torch.fx.symbolic_trace(model)
    assert torch.allclose(traced(x), expected, rtol=1e-4, atol=1e-5)
    extracted = create_feature_extractor(model, {"layer2": "stride8", "layer4": "stride32"})(x)
    assert torch.equal(extracted["stride8"], model.feature_maps(x, (2,))[0])
    assert torch.equal(extracted["stride32"], model.forward_features(x))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_checkpointing_changes_no_number(compiled: bool) -> None:
    """Nor BatchNorm's statistics, though every block is computed twice, or three times."""
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    kept: list[int] = []
    models = [small().train(), small().train()]
    models[1].set_grad_checkpointing()
    for model in models:
        kept.append(0)

        def count(tensor: torch.Tensor) -> torch.Tensor:
            kept[-1] += tensor.numel()
            return tensor

        run = torch.compile(model, backend="aot_eager") if compiled else model
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = run(x).square().sum()
        loss.backward(retain_graph=not compiled)
        if not compiled:
            loss.backward()
    plain, checkpointed = models
    assert kept[1] < kept[0]
    for mine, other in zip(checkpointed.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, other)
    for mine, other in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)


@pytest.mark.slow
def test_a_checkpointing_model_is_scripted_traced_and_exported(tmp_path: Path) -> None:
    model, x = small(), torch.randn(2, 3, 64, 64)
    expected = model(x)
    model.set_grad_checkpointing()
    for captured in (torch.jit.script(model), torch.fx.symbolic_trace(model)):
        assert torch.allclose(captured(x), expected, rtol=1e-4, atol=1e-5)
    spec = swsl.PreprocessSpec(input_size=(64, 64))
    swsl.export_model(model, tmp_path / "model.pt", spec=spec, labels="ABCDEFGHIJ")
    assert torch.allclose(torch.jit.load(tmp_path / "model.pt")(x), expected, rtol=1e-4, atol=1e-5)


def test_variant_models_can_be_scripted_too() -> None:
    torch.jit.script(seeded_model("swsl_resnext50_32x4d"))


@torch.inference_mode()
def test_channels_last_and_autocast() -> None:
    model, x = small(), torch.randn(2, 3, 64, 64)
    expected = model(x)
    last = small().to(memory_format=torch.channels_last)
    assert torch.allclose(
        last(x.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-4
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model(x).float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


def test_gradients_reach_every_parameter() -> None:
    model = small().train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters()
    )


def test_initialisation_is_he_normal_fan_out() -> None:
    torch.manual_seed(0)
    model = ResNeXt((1, 1, 1, 1), groups=32, width_per_group=4)
    kernel = model.layer3[0].conv2.weight
    assert abs(kernel.std().item() / (2 / (kernel.shape[0] * 9)) ** 0.5 - 1) < 0.05
    assert model.layer1[0].bn3.weight.eq(1).all()
