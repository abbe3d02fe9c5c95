"""What moves the weights: parameter groups, the learning rate's course, averaged weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from ..resnext import ResNeXt
from .recipe import MOMENTUM

_DEPTHS = {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4, "fc": 5}


def make_optimizer(
    model: ResNeXt, *, weight_decay: float, norm_decay: bool = True, layer_decay: float = 1.0
) -> torch.optim.SGD:
    """SGD with momentum over the parameters that require gradients.

    Each group carries ``scale``, its share of the learning rate: ``layer_decay`` to the power of how many stages lie
    above its own.
    """
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = norm_decay or parameter.ndim > 1  # BatchNorm's parameters and biases are vectors
            groups.setdefault((_DEPTHS[name.split(".")[0]], decays), []).append(parameter)
    return torch.optim.SGD(
        [
            {
                "params": parameters,
                "weight_decay": weight_decay if decays else 0.0,
                "scale": layer_decay ** (max(_DEPTHS.values()) - depth),
            }
            for (depth, decays), parameters in sorted(groups.items())
        ],
        lr=0.0,
        momentum=MOMENTUM,
    )


def learning_rate_at(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """The learning rate of a step (from 0): up a line to ``peak``, then down a cosine that would reach 0 at ``steps``."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    return peak * (1 + math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


class AveragedModel:
    """The exponential moving average of a model's weights and BatchNorm statistics.

    The decay rises to the one asked for as (1 + n) / (10 + n) over the first updates, so that a short run's average does
    not remember its start.
    """

    def __init__(self, model: ResNeXt, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for mean, value in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)
