"""How far an engine's answers may be from eager PyTorch's, and the input on which every frozen module is checked.

An error is compared with the size of the sums that made the answer, and not with the answer itself: the logits of a sound
model may cancel to nearly nothing, and then any rounding is large beside them. The features f are means of what a ReLU let
through, nothing cancels in them, and their error is ‖f' - f‖ / ‖f‖. A logit is w·f + b, and by Cauchy and Schwarz an error
of the features moves it by at most ‖w‖ ‖f' - f‖: so its error is divided by ‖w‖ ‖f‖ + |b|, and whatever the classifier, it
is no larger than the features', but for the rounding of its own sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}
"""The largest error to accept (see `relative_error` and `logits_error`), by the dtype computed in. Every frozen module carries
these numbers, and both languages read them from there."""


def golden_input(shape: Sequence[int]) -> Tensor:
    """The deterministic float32 input of golden checks: in uint32 arithmetic, element i of the flat tensor is
    ``((i * 2654435761 >> 24) - 128) / 64``. Every value is exact, so any language computes the same."""
    index = torch.arange(math.prod(shape), dtype=torch.int64)
    return (((index * 2654435761 & 0xFFFFFFFF) >> 24) - 128).to(torch.float32).div_(64).view(*shape)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest ‖actual - expected‖ / ‖expected‖ of a row of features N×D, or of one vector; infinite where shapes differ or
    a value is not finite."""
    return _largest(actual, expected, lambda difference, rows: (difference.norm(dim=-1), rows.norm(dim=-1)))


def logits_error(actual: Tensor, expected: Tensor, scale: Tensor) -> float:
    """The largest error of logits N×classes over its scale, which is `logits_scale`'s; infinite as in `relative_error`."""
    return _largest(actual, expected, lambda difference, _: (difference.abs(), scale))


def logits_scale(weight_norms: Sequence[float], biases: Sequence[float], features: Tensor) -> Tensor:
    """The size of the sums that make the logits of features N×D: ‖w‖ ‖f‖ + |b|, float64 N×classes. What it takes of the
    classifier is what `classifier_sizes` returns, and every frozen module carries."""
    norms, offsets = (torch.tensor(numbers, dtype=torch.float64) for numbers in (weight_norms, biases))
    return norms * features.detach().double().cpu().norm(dim=1, keepdim=True) + offsets


def classifier_sizes(model: nn.Module) -> tuple[list[float], list[float]]:
    """For each class the norm of its weights and the magnitude of its bias, 0 where there is none."""
    fc: Any = model.get_submodule("fc")
    norms = fc.weight.detach().double().cpu().norm(dim=1)
    bias = torch.zeros_like(norms) if fc.bias is None else fc.bias.detach().double().cpu()
    return norms.tolist(), bias.abs().tolist()


@torch.inference_mode()
def output_error(
    model: Any, batch: Tensor, *, logits: Tensor | None = None, features: Tensor | None = None
) -> float:
    """How far the logits N×classes, the features N×D, or both, that an engine made of a batch N×3×H×W are from those of
    ``model``, a `ResNeXt` or the like, in eager PyTorch: the larger of their errors."""
    expected = model.forward_head(model.forward_features(batch), pre_logits=True)
    errors = [] if features is None else [relative_error(features, expected)]
    if logits is not None:
        errors.append(
            logits_error(logits, model.fc(expected), logits_scale(*classifier_sizes(model), expected))
        )
    return max(errors)


def _largest(actual: Tensor, expected: Tensor, compare: Any) -> float:
    if actual.shape != expected.shape or not (actual.isfinite().all() and expected.isfinite().all()):
        return math.inf
    rows = expected.detach().double().cpu()
    difference, scale = compare(actual.detach().double().cpu() - rows, rows)
    ratios = torch.where(difference == 0, 0.0, difference / scale)  # zero may be all there is
    return ratios.max().item() if ratios.numel() else 0.0
