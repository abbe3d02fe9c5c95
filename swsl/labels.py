"""The 1,000 ImageNet classes: their names, as torchvision publishes them, and WordNet ids."""

from __future__ import annotations

from pathlib import Path

_ROWS = [
    line.split(" ", 1)
    for line in Path(__file__).with_name("imagenet_classes.txt").read_text("utf-8").splitlines()
]

WORDNET_IDS: tuple[str, ...] = tuple(row[0] for row in _ROWS)
"""``WORDNET_IDS[281]`` is ``"n02123045"``."""

LABELS: tuple[str, ...] = tuple(row[1] for row in _ROWS)
"""``LABELS[281]`` is ``"tabby"``."""
