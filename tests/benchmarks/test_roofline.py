"""The layers of benchmarks/roofline.py are those that an engine runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from swsl.deploy.runner import Runner, build_info
from swsl.variants import VARIANTS

sys.path.insert(0, str(ROOT / "benchmarks"))

import roofline


def test_operations_are_the_published_networks() -> None:
    for name, variant in VARIANTS.items():
        layers = roofline.fused_layers(name)
        assert sum(layer.operations(1) for layer in layers) == 2 * variant.macs
        weights = sum(layer.weights for layer in layers)
        assert 0.99 * variant.parameters < weights < variant.parameters  # the rest is biases and BatchNorms


def test_a_fused_block_moves_less_and_computes_more() -> None:
    for layers in roofline.stages("swsl_resnext50_32x4d").values():
        fused = roofline.of_fused_blocks(layers, 32) if layers[0].stage.startswith("stage") else None
        if fused:
            plan = roofline.of_layers(layers, 32)
            assert fused.moved < plan.moved
            assert fused.operations >= plan.operations
            assert fused.kernels == sum(layer.added for layer in layers)


@pytest.mark.skipif(not build_info()["compiled"], reason="needs the compiled runner")
def test_layers_are_the_engines(frozen50: Path) -> None:
    found = Runner(frozen50, batch_size=1).profile(torch.zeros(1, 3, 224, 224))
    assert all(layer.ways == () for layer in found)  # on a CPU nothing is tried
    layers = roofline.fused_layers("swsl_resnext50_32x4d")
    convolutions = [layer for layer in layers if layer.weights]
    assert [(layer.shape, 2 * layer.multiply_adds) for layer in found if layer.multiply_adds] == [
        (layer.shape, layer.operations(1)) for layer in convolutions
    ]
