"""How well a model recognises labelled images, on any engine, to the last image.

The figures are those of timm's ``validate.py`` on the same images: the same preprocessing, the same top-k, the same
restriction to a subset of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..bulk.batches import rows_of
from ..deploy.protocol import AnyRunner
from ..system.progress import Progress, say
from .answers import Answer, answers_of
from .labelled import Labelled
from .metrics import Share, Tally, share


@dataclass
class Evaluation:
    """The figures of one pass over labelled images."""

    tally: Tally
    labels: list[str]
    answers: list[Answer] = field(default_factory=list)
    """Of each image that could be used, in their order; classes are places in ``labels``."""
    failed: list[str] = field(default_factory=list)
    """What was wrong with each image that could not be used. They are in no figure."""
    real_top1: Share | None = None
    real_top5: Share | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        result = self.tally.to_dict(self.labels)
        if self.real_top1 and self.real_top5:
            result["real"] = {"top1": self.real_top1.to_dict(), "top5": self.real_top5.to_dict()}
        return {**result, "failed": self.failed}


def evaluate(
    engine: AnyRunner,
    data: Labelled,
    *,
    only_classes: Sequence[int] | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Run every image through ``engine`` and count.

    Args:
        engine: whatever runner.
        data: the images; one that cannot be read is named in ``failed`` and counted nowhere else.
        only_classes: the model may answer with these classes only, as ImageNet-A and -R (200 classes) are measured.
            Ascending class numbers; they must hold every target.
        workers: threads that read, decode and preprocess; 0: as many as the runner may use.
        progress: say on stderr how far it has come.

    Raises:
        ValueError: targets outside the classes.
    """
    classes = list(only_classes) if only_classes is not None else list(range(len(engine.labels)))
    position = {number: place for place, number in enumerate(classes)}
    strangers = sorted({target for target in data.targets if target not in position})
    if strangers:
        raise ValueError(f"targets: {strangers[:5]} are none of the {len(classes)} classes")
    result = Evaluation(Tally(len(classes)), [engine.labels[number] for number in classes])
    real_hits = [0, 0]
    real_images = 0
    with Progress("images", len(data.paths), enabled=progress) as bar:
        for places, logits, errors in rows_of(engine, data.paths, workers=workers):
            for _, error in errors:
                result.failed.append(str(error))
                say(f"swsl: error: {error}")
            if only_classes is not None:
                logits = logits[:, classes]
            if places:
                targets = torch.tensor([position[data.targets[place]] for place in places])
                top = result.tally.update(logits, targets)
                result.answers += answers_of(logits, top, targets, [data.paths[place] for place in places])
            if data.real is not None and places:
                for place, predicted in zip(places, top.tolist(), strict=True):
                    if right := set(data.real[place]):
                        real_images += 1
                        numbers = [classes[number] for number in predicted]
                        real_hits[0] += numbers[0] in right
                        real_hits[1] += not right.isdisjoint(numbers)
            bar.advance(len(places) + len(errors), errors=len(errors))
    if data.real is not None:
        result.real_top1, result.real_top5 = (
            share(real_hits[0], real_images),
            share(real_hits[1], real_images),
        )
    return result
