"""The class names and WordNet ids."""

from __future__ import annotations

from pathlib import Path

import timm
import torchvision

from swsl.labels import LABELS, WORDNET_IDS


def test_labels_are_torchvisions() -> None:
    assert list(LABELS) == torchvision.models.ResNeXt50_32X4D_Weights.IMAGENET1K_V2.meta["categories"]


def test_wordnet_ids_are_timms() -> None:
    synsets = Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt"
    assert list(WORDNET_IDS) == synsets.read_text().split()
