"""What moves the weights, by hand."""

from __future__ import annotations

import pytest
import torch

import swsl
from swsl.training.optimisation import AveragedModel, learning_rate_at, make_optimizer


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    rates = [learning_rate_at(step, 100, 10, 1.0) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_parameter_groups() -> None:
    model = swsl.ResNeXt((1, 1, 1, 1), 2, 4, 3)
    groups = make_optimizer(model, weight_decay=0.1, norm_decay=False, layer_decay=0.5).param_groups
    found = {id(p): (g["scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == len(list(model.parameters()))
    assert found[id(model.conv1.weight)] == (0.5**5, 0.1)
    assert found[id(model.bn1.weight)] == (0.5**5, 0.0)
    assert found[id(model.layer4[0].conv2.weight)] == (0.5, 0.1)
    assert found[id(model.fc.weight)] == (1.0, 0.1)
    assert found[id(model.fc.bias)] == (1.0, 0.0)
    assert {g["weight_decay"] for g in make_optimizer(model, weight_decay=0.1).param_groups} == {0.1}


def test_the_average_model() -> None:
    model = swsl.ResNeXt((1, 1, 1, 1), 2, 4, 3)
    average = AveragedModel(model, decay=0.25)
    start = model.bn1.running_mean.clone()
    model.bn1.running_mean += 8
    average.update(model)  # its decay is still (1 + 1) / (10 + 1)
    assert torch.allclose(average.model.bn1.running_mean, start + 8 * (1 - 2 / 11))
    for _ in range(2):
        average.update(model)
    by_hand = 8 * (2 / 11) * (3 / 12) * 0.25
    assert torch.allclose(average.model.bn1.running_mean, start + 8 - by_hand)
