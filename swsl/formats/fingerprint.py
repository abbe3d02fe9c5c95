"""What tells one model from another, whatever file or engine it is in."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import nn

from ..preprocess import PreprocessSpec


def fingerprint(model: nn.Module, spec: PreprocessSpec, labels: Sequence[str]) -> str:
    """SHA-256, in hex digits, of everything that decides a model's answers: its weights, preprocessing and class names.

    A frozen module carries the fingerprint of the model that it was made of, so that eager and compiled runs of one model
    know each other.
    """
    digest = hashlib.sha256(json.dumps([asdict(spec), list(labels)]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith(".num_batches_tracked"):  # which the published files lack
            continue
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(ctypes.string_at(values.data_ptr(), 4 * values.numel()))
    return digest.hexdigest()
