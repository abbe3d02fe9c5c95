"""The runner's interface over eager PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from conftest import seed_model
from PIL import Image
from timm.data import create_transform, resolve_data_config

import swsl
from swsl.deploy.eager import EagerRunner
from swsl.labels import LABELS
from swsl.prediction import Prediction, top_predictions


@pytest.fixture(scope="module")
def runner(model50: swsl.ResNeXt) -> EagerRunner:
    return EagerRunner(model50, device="cpu", batch_size=2)


def test_top5_equals_timms_own_pipeline(runner: EagerRunner, model50: swsl.ResNeXt, photo: Path) -> None:
    model = timm.create_model("resnext50_32x4d.fb_swsl_ig1b_ft_in1k", pretrained=False).eval()
    model.load_state_dict(model50.state_dict())
    transform = create_transform(**resolve_data_config({}, model=model))
    with torch.inference_mode():
        logits = model(transform(Image.open(photo).convert("RGB")).unsqueeze(0))
    assert torch.equal(runner.logits([photo]), logits)
    probabilities, indices = logits.softmax(1).topk(5)
    expected = [
        Prediction(LABELS[i], i, p)
        for i, p in zip(indices[0].tolist(), probabilities[0].tolist(), strict=True)
    ]
    assert runner.classify([photo]) == [expected]


def test_embeddings_are_the_pooled_features(runner: EagerRunner, model50: swsl.ResNeXt, photo: Path) -> None:
    embeddings = runner.embed([photo, photo])
    assert embeddings.shape == (2, 2048)
    with torch.inference_mode():
        assert torch.equal(model50.fc(embeddings), runner.logits([photo, photo]))


def test_stream_keeps_order_and_reports_the_bad_ones(runner: EagerRunner, photo: Path) -> None:
    upside_down = Image.open(photo).rotate(180)
    sources = [photo, "nowhere.jpg", upside_down, b"junk", 7, photo]
    results = list(runner.stream(iter(sources), top_k=3))
    assert [result.source for result in results] == sources
    assert [str(result.error)[:25] if result.error else None for result in results] == [
        None,
        "nowhere.jpg: cannot be op",
        None,
        "image bytes: not an image",
        "image: expected a path, a",
        None,
    ]
    assert [len(result.predictions) for result in results] == [3, 0, 3, 0, 0, 3]
    single = runner.classify([photo], top_k=3)[0]
    for index in (0, 5):
        assert [p.index for p in results[index].predictions] == [p.index for p in single]
    assert list(runner.stream([])) == []


def test_stream_reads_no_further_than_a_batch_ahead(runner: EagerRunner, photo: Path) -> None:
    taken = []

    def endless() -> object:
        while True:
            taken.append(1)
            yield photo

    next(runner.stream(endless()))
    assert len(taken) == 2
    taken.clear()
    next(runner.stream(endless(), max_wait=None))
    assert len(taken) == 4  # the next batch is prepared meanwhile


def test_wrong_arguments(model50: swsl.ResNeXt) -> None:
    with pytest.raises(ValueError, match="labels: expected 1000, one a class, got 2"):
        EagerRunner(model50, labels=["a", "b"])
    with pytest.raises(ValueError, match="batch_size: expected 0 or more, got -1"):
        EagerRunner(model50, batch_size=-1)
    with pytest.raises(ValueError, match="top_k: expected 1 or more, got 0"):
        top_predictions(torch.zeros(1, 3), ["a", "b", "c"], 0)
    with pytest.raises(ValueError, match="device: expected 'cpu', 'cuda', 'cuda:N' or 'auto', got 'tpu'"):
        EagerRunner(model50, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: 'cuda' was asked for, but PyTorch sees 0 CUDA GPUs"):
            EagerRunner(model50, device="cuda")


def test_other_class_counts() -> None:
    runner = EagerRunner(seed_model(swsl.ResNeXt((1, 1, 1, 1), 4, 4, 3)), device="cpu")
    assert runner.labels == ("0", "1", "2")
    assert len(top_predictions(torch.zeros(1, 3), runner.labels, 5)[0]) == 3


def test_a_model_without_a_classifier_embeds_alone() -> None:
    runner = EagerRunner(swsl.ResNeXt((1, 1, 1, 1), 4, 4, 0), spec=swsl.PreprocessSpec(input_size=(32, 32)))
    image = torch.zeros(40, 40, 3, dtype=torch.uint8)
    assert runner.embed([image]).shape == (1, 2048)
    assert runner.run([image], outputs="embedding")[0].embedding.shape == (2048,)
    for call in (runner.classify, runner.logits, lambda images: runner.forward(runner.preprocess(images))):
        with pytest.raises(ValueError, match="has no classifier"):
            call([image])


def test_logits_that_are_not_finite_are_no_prediction() -> None:
    """As in the compiled runner."""
    model = seed_model(swsl.ResNeXt((1, 1, 1, 1), 4, 4, 10))
    runner = EagerRunner(model, spec=swsl.PreprocessSpec(input_size=(32, 32)))
    image = torch.zeros(40, 40, 3, dtype=torch.uint8)
    assert runner.classify([image])
    model.fc.bias.data[3] = torch.inf
    with pytest.raises(swsl.ImageError, match="^image: the logits are not all finite"):
        runner.classify([image])
    assert runner.run([image], outputs="logits")[0].logits.isinf().any()
