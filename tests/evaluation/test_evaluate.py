"""Evaluation: the figures against other implementations of them, the layouts of data sets, and engines that agree."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from conftest import seed_model, subprocess_environment
from PIL import Image

import swsl
from swsl.deploy.eager import EagerRunner
from swsl.deploy.export import export_model
from swsl.deploy.frozen import FrozenRunner
from swsl.deploy.runner import build_info
from swsl.evaluation.class_folders import DataError
from swsl.evaluation.evaluate import evaluate
from swsl.evaluation.labelled import Labelled, class_numbers, read_labelled
from swsl.evaluation.metrics import Tally, share
from swsl.labels import LABELS, WORDNET_IDS
from swsl.training.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint

SPEC = swsl.PreprocessSpec((32, 32))


@pytest.fixture(scope="module")
def model() -> swsl.ResNeXt:
    """A thousand ImageNet classes in a small network, random but far from uniform."""
    return seed_model(swsl.ResNeXt((1, 1, 1, 1), 2, 4, 1000))


@pytest.fixture(scope="module")
def engine(model: swsl.ResNeXt) -> EagerRunner:
    return EagerRunner(model, spec=SPEC, device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def ten_classes() -> swsl.ResNeXt:
    return seed_model(swsl.ResNeXt((1, 1, 1, 1), 2, 4, 10))


def picture(path: Path, seed: int, size: tuple[int, int] = (50, 40)) -> Path:
    """Smooth random colours: images of different classes to any network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(256, (4, 5, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.frombytes("RGB", (5, 4), bytes(pixels.flatten().tolist())).resize(size).save(path)
    return path


def best_guesses(engine: EagerRunner, paths: list[Path], place: int = 0) -> list[int]:
    return [int(row.argsort(descending=True)[place]) for row in engine.logits(paths)]


# --- figures


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (5, 5), (1, 2), (583, 599), (41_083, 50_000)])
def test_intervals_are_wilsons(hits: int, total: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    found = share(hits, total)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.value == hits / total


def test_no_images_have_no_share() -> None:
    assert math.isnan(share(0, 0).value)
    assert Tally(3).to_dict(["a", "b", "c"])["top1"]["value"] is None
    with pytest.raises(ValueError, match="expected 0 to 2"):
        share(3, 2)


def test_figures_by_hand() -> None:
    tally = Tally(6)
    probabilities = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]] * 4)
    tally.update(probabilities.log(), torch.tensor([0, 0, 1, 5]))
    assert tally.top1[:2] == (2, 4)
    assert tally.top5[:2] == (3, 4)
    assert tally.loss == pytest.approx(-sum(math.log(p) for p in (0.5, 0.5, 0.3, 0.02)) / 4)
    assert tally.ece == pytest.approx(0, abs=1e-6)  # a confidence of a half, right half the time
    assert [s[:2] for s in tally.per_class] == [(2, 2), (0, 1), (0, 0), (0, 0), (0, 0), (0, 1)]
    assert tally.confusion[0, 0] == 2
    assert tally.confusion[5, 0] == 1
    tally.update(torch.tensor([[9.0, 0, 0, 0, 0, 0]]), torch.tensor([3]))  # certain and wrong
    confidence = torch.tensor([9.0, 0, 0, 0, 0, 0]).softmax(0)[0].item()
    assert tally.ece == pytest.approx(confidence / 5)
    doubled = Tally(6)
    doubled.update(probabilities.log(), torch.tensor([0, 0, 1, 5]))
    doubled.reduce(lambda sums: sums * 2)
    assert doubled.top1[:2] == (4, 8)


@pytest.mark.slow
def test_equal_to_timms_validation(engine: EagerRunner, model: swsl.ResNeXt, tmp_path: Path) -> None:
    """To the last image: timm's own model, loader and metrics, on synset folders of three sizes of image."""
    timm = pytest.importorskip("timm")
    from timm.data import create_dataset, create_loader
    from timm.utils import accuracy

    paths = [
        picture(tmp_path / "x" / f"{n}.png", n, ((50, 40), (37, 91), (33, 33))[n % 3]) for n in range(24)
    ]
    folders = sorted({*best_guesses(engine, paths), *best_guesses(engine, paths, 3)})
    first, fourth = best_guesses(engine, paths), best_guesses(engine, paths, 3)
    for number, path in enumerate(paths):
        target = (first, fourth, [folders[0]] * 24)[number % 3][number]
        (tmp_path / "val" / WORDNET_IDS[target]).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "val" / WORDNET_IDS[target] / path.name)

    data = read_labelled(tmp_path / "val", LABELS)
    only = sorted(set(data.targets))
    whole, subset = evaluate(engine, data), evaluate(engine, data, only_classes=only)

    theirs = timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=1000, cardinality=2, base_width=4
    )
    theirs.load_state_dict(model.state_dict())
    loader = create_loader(
        create_dataset("", root=str(tmp_path / "val")), (3, 32, 32), batch_size=5, use_prefetcher=False,
        interpolation=SPEC.interpolation, mean=SPEC.mean, std=SPEC.std, num_workers=0, crop_pct=SPEC.crop_pct,
    )  # fmt: skip
    with torch.inference_mode():
        batches = [(theirs.eval()(images), targets) for images, targets in loader]
    logits, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    mapped = torch.tensor([only[target] for target in targets])
    for found, rows, truth in ((whole, logits, mapped), (subset, logits[:, only], targets)):
        top1, top5 = (round(float(value) * 24 / 100) for value in accuracy(rows, truth, topk=(1, 5)))
        assert (found.tally.top1.hits, found.tally.top5.hits) == (top1, top5)
        assert found.tally.images == 24
        assert found.tally.loss == pytest.approx(
            float(torch.nn.functional.cross_entropy(rows, truth)), rel=1e-5
        )
    assert 0 < whole.tally.top1.hits < whole.tally.top5.hits < 24
    assert subset.tally.loss < whole.tally.loss


def test_real_labels_as_timm_counts_them(engine: EagerRunner, tmp_path: Path) -> None:
    timm_data = pytest.importorskip("timm.data")
    paths = [picture(tmp_path / "val" / f"ILSVRC2012_val_{n + 1:08d}.JPEG", n) for n in range(6)]
    first, third = best_guesses(engine, paths), best_guesses(engine, paths, 2)
    real = [[first[0], 7], [third[1]], [], [7], [first[4]], [first[5]]]
    (tmp_path / "real.json").write_text(json.dumps(real))
    (tmp_path / "truth.txt").write_text("\n".join(WORDNET_IDS[number] for number in first))
    data = read_labelled(tmp_path / "val", LABELS, truth=tmp_path / "truth.txt", real=tmp_path / "real.json")
    found = evaluate(engine, data)
    assert found.tally.top1.value == 1
    theirs = timm_data.RealLabelsImagenet([str(path) for path in paths], str(tmp_path / "real.json"))
    theirs.add_result(engine.logits(paths))
    assert found.real_top1 is not None
    assert found.real_top5 is not None
    assert found.real_top1.value * 100 == pytest.approx(theirs.get_accuracy(1))
    assert found.real_top5.value * 100 == pytest.approx(theirs.get_accuracy(5))
    assert found.real_top1.total == 5


# --- layouts


def test_classes_by_label_wordnet_id_and_number() -> None:
    assert class_numbers(["tench", "tabby"], LABELS, "x") == [0, 281]
    assert class_numbers(["n01440764", "n02123045"], LABELS, "x") == [0, 281]
    assert class_numbers(["0", "281"], LABELS, "x") == [0, 281]  # ImageNet-V2's folders
    assert class_numbers(["1", "0"], ["1", "0"], "x") == [0, 1]  # labels come first
    with pytest.raises(DataError, match=r"x: 1 classes are none of the model's 1000 \(unicorn\)"):
        class_numbers(["tench", "unicorn"], LABELS, "x")
    with pytest.raises(DataError, match="'crane' is the label of two classes"):
        class_numbers(["crane"], ["crane", "crane"], "x")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("synsets.txt", "n02123045\nn01440764\nn01440764\n"),
        ("val.txt", "c.png 0\na.png 281\nb.png 0\n"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\na,n02123045 1 2 3 4\nb,n01440764 1 2 3 4\nc,n01440764 1 1 1 1\n"),
    ],
)  # fmt: skip
def test_flat_folders_with_their_truth(tmp_path: Path, name: str, text: str) -> None:
    for stem in "abc":
        picture(tmp_path / "val" / f"{stem}.png", 1)
    (tmp_path / name).write_text(text)
    data = read_labelled(tmp_path / "val", LABELS, truth=tmp_path / name)
    assert [(Path(path).name, target) for path, target in zip(data.paths, data.targets, strict=True)] == [
        ("a.png", 281), ("b.png", 0), ("c.png", 0)]  # fmt: skip


def test_the_devkits_numbers_are_translated(tmp_path: Path) -> None:
    import numpy
    from scipy.io import savemat

    picture(tmp_path / "val" / "a.png", 1)
    picture(tmp_path / "val" / "b.png", 2)
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("2\n1\n")
    with pytest.raises(DataError, match=r"put the devkit's meta\.mat beside it"):
        read_labelled(tmp_path / "val", LABELS, truth=truth)
    synsets = numpy.array([(1, "n02123045"), (2, "n01440764")], [("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    savemat(tmp_path / "meta.mat", {"synsets": synsets})
    assert read_labelled(tmp_path / "val", LABELS, truth=truth).targets == [0, 281]


def test_a_csv_file_and_what_is_wrong_with_others(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", 1)
    table = tmp_path / "labels.csv"
    table.write_text('label,path\n"tench",images/a.png\n')
    assert read_labelled(table, LABELS) == Labelled([str(tmp_path / "images" / "a.png")], [0])
    table.write_text("file,class\na,b\n")
    with pytest.raises(DataError, match="expected the columns path and label"):
        read_labelled(table, LABELS)
    table.write_text("path,label\nimages/a.png\n")
    with pytest.raises(DataError, match="image 1: expected a path and a label"):
        read_labelled(table, LABELS)
    (tmp_path / "truth.txt").write_text("tench\ntench\n")
    with pytest.raises(DataError, match="2 lines for the 1 images"):
        read_labelled(tmp_path / "images", LABELS, truth=tmp_path / "truth.txt")
    (tmp_path / "truth.txt").write_text("a.png, great white shark\n")
    assert read_labelled(tmp_path / "images", LABELS, truth=tmp_path / "truth.txt").targets == [2]
    (tmp_path / "truth.txt").write_text("b.png 0\n")
    with pytest.raises(DataError, match="no class for 1 images"):
        read_labelled(tmp_path / "images", LABELS, truth=tmp_path / "truth.txt")
    with pytest.raises(DataError, match="no such folder"):
        read_labelled(tmp_path / "nowhere", LABELS)


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_folders_of_imagenet_a_and_r_are_their_200_classes(name: str, tmp_path: Path) -> None:
    """As timm's validate.py restricts a model to them by --valid-labels."""
    pytest.importorskip("timm")
    lists = files("timm.data._info")
    synsets = lists.joinpath(f"{name}_synsets.txt").read_text().split()
    for synset in synsets:
        (tmp_path / synset).mkdir()
        (tmp_path / synset / "a.jpg").touch()
    found = sorted(set(read_labelled(tmp_path, LABELS).targets))
    assert len(found) == 200
    assert found == sorted(map(int, lists.joinpath(f"{name}_indices.txt").read_text().split()))


# --- engines and the command


def test_engines_agree_and_leave_out_what_they_cannot_read(
    few_digits: Path, ten_classes: swsl.ResNeXt, tmp_path: Path
) -> None:
    labels = [str(digit) for digit in range(10)]
    frozen = tmp_path / "frozen.pt"
    export_model(ten_classes, frozen, spec=SPEC, labels=labels)
    engines: list[object] = [
        EagerRunner(ten_classes, spec=SPEC, labels=labels, device="cpu", batch_size=5),
        FrozenRunner(frozen, device="cpu", batch_size=4),
    ]
    if build_info()["compiled"]:
        engines.append(swsl.Runner(frozen, batch_size=3))
    else:
        assert os.environ.get("SWSL_REQUIRE_RUNNER") != "1", build_info()["reason"]
    folder = Path(shutil.copytree(few_digits / "val", tmp_path / "val"))
    bad = folder / "1" / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n")
    data = read_labelled(folder, labels)
    results = [evaluate(engine, data) for engine in engines]
    for result in results:
        assert result.tally.images == 21
        assert len(result.failed) == 1
        assert str(bad) in result.failed[0]
        assert torch.equal(result.tally.confusion, results[0].tally.confusion)
        assert result.tally.loss == pytest.approx(results[0].tally.loss, rel=1e-5)


def test_the_command(few_digits: Path, ten_classes: swsl.ResNeXt, tmp_path: Path) -> None:
    weights = tmp_path / "best.pth"
    labels = tuple(str(digit) for digit in range(10))
    save_checkpoint(weights, Checkpoint(ten_classes, SPEC, labels))

    def validate(*arguments: object, code: int = 0) -> str:
        command = [
            sys.executable,
            "-m",
            "swsl",
            "validate",
            few_digits / "val",
            "--weights",
            weights,
            *arguments,
        ]
        result = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=subprocess_environment()
        )
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout if code == 0 else result.stderr

    told = validate(
        "--json", tmp_path / "all.json", "--reliability", tmp_path / "reliability.png", "--per-class",
        "--predictions", tmp_path / "predictions.csv",
    )  # fmt: skip
    found = json.loads((tmp_path / "all.json").read_text())
    assert f"{found['top1']['value']:.2%} [{found['top1']['low']:.2%}" in told
    assert Image.open(tmp_path / "reliability.png").height > 300
    assert [row["total"] for row in found["per_class"]] == [7, 7, 0, 7, 0, 0, 0, 0, 0, 0]
    assert found["per_class"][2]["value"] is None
    assert sum(row["images"] for row in found["calibration"]) == 21
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert [row["path"] for row in rows] == sorted(map(str, few_digits.glob("val/*/*.png")))
    assert all(row["truth"] == Path(row["path"]).parent.name for row in rows)
    assert sum(row["prediction"] == row["truth"] for row in rows) == found["top1"]["hits"]
    assert sum(int(row["rank"]) <= 5 for row in rows) == found["top5"]["hits"]

    few = json.loads(validate("--present-classes", "--json", "-"))
    assert [row["label"] for row in few["per_class"]] == ["0", "1", "3"]
    assert few["top5"]["value"] == 1

    larger = json.loads(validate("--input-size", 64, "--crop-pct", 1, "--json", "-"))
    expected = evaluate(
        EagerRunner(ten_classes, spec=swsl.PreprocessSpec((64, 64), 1.0), labels=labels, device="cpu"),
        read_labelled(few_digits / "val", labels),
    )
    assert larger["loss"] == pytest.approx(expected.tally.loss, rel=1e-6)
    assert larger["loss"] != found["loss"]
    assert "--crop-pct: expected above 0" in validate("--crop-pct", 0, code=1)
    assert "not allowed with" in validate("--frozen", "model.pt", code=2)
    assert "no such file" in validate(
        "--real", tmp_path / "none.json", "--truth", tmp_path / "none.txt", code=1
    )


# --- the file that it reads


def test_a_checkpoint_brings_its_own_model(
    ten_classes: swsl.ResNeXt, weights50: Path, tmp_path: Path
) -> None:
    path = tmp_path / "best.pth"
    labels = tuple("abcdefghij")
    save_checkpoint(path, Checkpoint(ten_classes, SPEC, labels, metrics={"val_top1": 0.5}))
    loaded = load_model("swsl_resnext101_32x4d", path)  # the file says what it is
    assert (loaded.spec, loaded.labels, loaded.metrics) == (SPEC, labels, {"val_top1": 0.5})
    batch = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.model.eval()(batch), ten_classes(batch))

    assert load_model("swsl_resnext50_32x4d", weights50).labels == LABELS
    with pytest.raises(swsl.WeightsError, match="expected a checkpoint that `swsl finetune` wrote"):
        load_checkpoint(weights50)
    content = torch.load(path, weights_only=True)
    for change, message in (
        ({"format": 2}, "checkpoint format 2, this swsl reads format 1"),
        ({"labels": ["a"]}, "1 labels for 10 classes"),
        ({"preprocess": {}, "labels": None}, "damaged checkpoint"),
    ):
        torch.save({**content, **change}, path)
        with pytest.raises(swsl.WeightsError, match=message):
            load_checkpoint(path)
