"""The table of published facts and the functions that build models from it."""

from __future__ import annotations

import copy
import inspect
import pickle
import runpy

import pytest
import torch
from conftest import NAMES, ROOT

import swsl
from swsl import variants


def test_published_facts() -> None:
    table = {
        v.name: (v.parameters, v.file_size, v.top1, v.top5, v.published_flops) for v in swsl.VARIANTS.values()
    }
    assert table == {
        "swsl_resnext50_32x4d": (25_028_904, 100_428_550, 82.17, 96.23, 5_472_648_192),
        "swsl_resnext101_32x4d": (44_177_704, 177_341_913, 83.22, 96.77, 10_298_145_792),
        "swsl_resnext101_32x8d": (88_791_336, 356_056_638, 84.27, 97.17, 21_180_417_024),
        "swsl_resnext101_32x16d": (194_026_792, 777_518_664, 83.34, 96.84, 46_623_691_776),
    }
    for variant in swsl.VARIANTS.values():
        assert variant.url.endswith(f"-{variant.sha256_prefix}.pth")
        assert variant.license == "CC-BY-NC-4.0"
    assert "never replaced" in swsl.VARIANTS["swsl_resnext101_32x16d"].note


def test_variants_cannot_be_changed() -> None:
    variant = swsl.VARIANTS["swsl_resnext50_32x4d"]
    with pytest.raises(AttributeError):
        variant.top1 = 99.9
    with pytest.raises(TypeError):
        swsl.VARIANTS["mine"] = variant


@pytest.mark.parametrize("name", NAMES)
def test_entrypoints(name: str) -> None:
    entrypoint = runpy.run_path(str(ROOT / "hubconf.py"))[name]
    assert entrypoint is getattr(variants, name)
    assert inspect.signature(entrypoint).parameters.keys() == inspect.signature(
        swsl.create_model
    ).parameters.keys() - {"name"}
    for fact in (
        name,
        "non-commercial",
        f"{swsl.VARIANTS[name].parameters:,}",
        str(swsl.VARIANTS[name].top1),
    ):
        assert fact in entrypoint.__doc__


def test_models_carry_their_variant() -> None:
    model = variants.swsl_resnext50_32x4d(pretrained=False, num_classes=0)
    assert model.variant is swsl.VARIANTS["swsl_resnext50_32x4d"]
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2048)


def test_models_can_be_copied_and_pickled() -> None:
    model = swsl.create_model("swsl_resnext50_32x4d", pretrained=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.variant == model.variant
        assert torch.equal(twin.fc.weight, model.fc.weight)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"no variant 'swsl_resnext101_32x8'; did you mean swsl_resnext101_32x8d or"
    ):
        swsl.create_model("swsl_resnext101_32x8", pretrained=False)
    with pytest.raises(ValueError, match="swsl_resnext50_32x4d.*swsl_resnext101_32x16d"):
        swsl.create_model("vit", pretrained=False)
