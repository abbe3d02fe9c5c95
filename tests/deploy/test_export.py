"""Frozen modules: what is inside, that they compute what the model does, and that bad ones are refused."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import NAMES, rewrite_archive, seed_model, seeded_model

import swsl
from swsl.cli.main import main
from swsl.deploy import export
from swsl.deploy.frozen import FrozenRunner
from swsl.formats import golden
from swsl.labels import LABELS


def small_model(num_classes: int = 3) -> swsl.ResNeXt:
    return seed_model(swsl.ResNeXt((1, 2, 1, 1), 4, 4, num_classes))


SMALL_SPEC = swsl.PreprocessSpec((64, 48), 0.9, "bicubic")


@pytest.fixture
def frozen_small(tmp_path: Path) -> Path:
    export.export_model(
        small_model(), tmp_path / "small.pt", spec=SMALL_SPEC, labels=["cat", "dög", 'a "quoted" fish']
    )
    return tmp_path / "small.pt"


def check_agrees_with_eager(path: Path, model: swsl.ResNeXt, sizes: list[tuple[int, int, int]]) -> None:
    frozen = torch.jit.load(str(path))
    for batch, height, width in sizes:
        x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            error = golden.output_error(model, x, logits=frozen(x), features=frozen.embed(x))
        assert error <= golden.TOLERANCES["float32"]


def test_any_batch_and_size(frozen50: Path, model50: swsl.ResNeXt) -> None:
    check_agrees_with_eager(frozen50, model50, [(1, 224, 224), (3, 224, 224), (2, 160, 256), (1, 33, 47)])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:])
def test_the_large_variants(name: str, tmp_path: Path) -> None:
    model = seeded_model(name)
    export.export_model(model, tmp_path / "model.pt")
    check_agrees_with_eager(tmp_path / "model.pt", model, [(2, 224, 224)])


def test_the_graph_is_plain(frozen50: Path) -> None:
    """Only operators of ATen, no BatchNorm left, no branches, and one copy of the weights for both methods."""
    frozen = torch.jit.load(str(frozen50))
    graphs = str(frozen.inlined_graph) + str(frozen.embed.inlined_graph)
    operators = set(re.findall(r" = (\w+::\w+)", graphs))
    assert operators == {
        "prim::Constant",
        "prim::ListConstruct",
        "aten::conv2d",
        "aten::relu_",
        "aten::add_",
        "aten::max_pool2d",
        "aten::adaptive_avg_pool2d",
        "aten::flatten",
        "aten::linear",
    }
    assert frozen50.stat().st_size < 1.01 * 4 * swsl.VARIANTS["swsl_resnext50_32x4d"].parameters


def test_metadata_says_what_deployment_needs(frozen50: Path) -> None:
    metadata = export.read_metadata(frozen50)
    variant = swsl.VARIANTS["swsl_resnext50_32x4d"]
    assert metadata["format"] == export.FORMAT == 3
    assert metadata["variant"] == variant.name
    assert metadata["architecture"] == {
        "layers": [3, 4, 6, 3],
        "groups": 32,
        "width_per_group": 4,
        "num_classes": 1000,
    }
    assert swsl.PreprocessSpec.from_json(json.dumps(metadata["preprocess"])) == variant.preprocess
    assert tuple(metadata["labels"]) == LABELS
    assert metadata["license"] == "CC-BY-NC-4.0"
    assert metadata["weights_sha256"] == "ab" * 32
    assert metadata["versions"] == {"swsl": swsl.__version__, "torch": torch.__version__}
    assert metadata["golden"]["shape"] == [1, 3, 224, 224]
    assert metadata["golden"]["tolerances"] == {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}


def test_fine_tuned_models_export_the_same_way(frozen_small: Path) -> None:
    metadata = export.read_metadata(frozen_small)
    assert metadata["variant"] is None
    assert metadata["labels"] == ["cat", "dög", 'a "quoted" fish']
    assert metadata["preprocess"]["input_size"] == [64, 48]
    check_agrees_with_eager(frozen_small, small_model(), [(2, 64, 48)])
    assert export.verify(frozen_small) <= 1e-5


def test_weights_of_a_variant_keep_their_licence_when_fine_tuned(tmp_path: Path) -> None:
    model = seeded_model("swsl_resnext50_32x4d", num_classes=2)
    export.export_model(model, tmp_path / "m.pt", labels=["a", "b"], spec=swsl.PreprocessSpec((64, 64)))
    metadata = export.read_metadata(tmp_path / "m.pt")
    assert (metadata["variant"], metadata["license"]) == (None, "CC-BY-NC-4.0")


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = small_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export.export_model(model, tmp_path / "m.pt", spec=SMALL_SPEC, labels=["a", "b", "c"])
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_wrong_arguments_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels: expected 3, one a class, got 2"):
        export.export_model(small_model(), tmp_path / "m.pt", labels=["a", "b"])
    with pytest.raises(ValueError, match="labels: expected 3, one a class, got none"):
        export.export_model(small_model(), tmp_path / "m.pt")
    with pytest.raises(FileNotFoundError, match=r"m\.pt: there is no folder .*/nowhere; make it first"):
        export.export_model(
            small_model(), tmp_path / "nowhere" / "m.pt", spec=SMALL_SPEC, labels=["a", "b", "c"]
        )
    with pytest.raises(ValueError, match="model: expected a classifier"):
        export.export_model(small_model(0), tmp_path / "m.pt")
    broken = small_model()
    broken.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(
        export.ModelError, match=r"not written, since 1 tensors .* hold NaN or infinity \(fc\.weight\)"
    ):
        export.export_model(broken, tmp_path / "m.pt", spec=SMALL_SPEC, labels=["a", "b", "c"])
    large = small_model()
    for block in (*large.layer3, *large.layer4):
        block.bn3.weight.data *= 1e30
    with pytest.raises(
        export.ModelError, match="not written, since .* are not finite; the weights are too large"
    ):
        export.export_model(large, tmp_path / "m.pt", spec=SMALL_SPEC, labels=["a", "b", "c"])
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, change: Callable[[dict], None]) -> Path:
    """The same archive with another swsl.json."""

    def change_entry(name: str, data: bytes) -> bytes:
        if not name.endswith("swsl.json"):
            return data
        metadata = json.loads(data)
        change(metadata)
        return json.dumps(metadata).encode()

    return rewrite_archive(path, change_entry)


def test_bad_files_are_refused(tmp_path: Path, frozen_small: Path) -> None:
    with pytest.raises(export.ModelError, match="nowhere.pt: no such file; expected a frozen module"):
        export.verify(tmp_path / "nowhere.pt")
    with pytest.raises(export.ModelError, match="is a directory, expected a frozen module"):
        export.verify(tmp_path)
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(export.ModelError, match="text.pt: no frozen module, or damaged: it does not end as"):
        export.verify(tmp_path / "text.pt")
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffer)
    (tmp_path / "other.pt").write_bytes(buffer.getvalue())
    with pytest.raises(
        export.ModelError,
        match=r"other.pt: a TorchScript module without swsl.json inside: not exported by swsl",
    ):
        export.verify(tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes(frozen_small.read_bytes()[:-100])
    with pytest.raises(export.ModelError, match="cut.pt: no frozen module, or damaged"):
        export.verify(tmp_path / "cut.pt")
    with pytest.raises(
        export.ModelError,
        match="swsl.json inside it: format 2, this version of swsl knows format 3 only; export the model again",
    ):
        export.verify(rewrite(frozen_small, lambda metadata: metadata.update(format=2)))


def test_verify_finds_a_module_that_computes_something_else(
    frozen_small: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["verify", str(frozen_small)]) == 0
    assert "relative error" in capsys.readouterr().out

    def shift(metadata: dict) -> None:
        metadata["golden"]["logits"][0] += 0.5

    rewrite(frozen_small, shift)
    with pytest.raises(
        export.ModelError,
        match="its logits are .* from those recorded at export when run .*, expected at most 1e-05; export it again",
    ):
        export.verify(frozen_small)
    assert main(["verify", str(frozen_small)]) == 1


@pytest.mark.slow
def test_export_command(
    tmp_path: Path, weights50: Path, frozen50: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "model.pt"
    assert main(["export", "swsl_resnext50_32x4d", "--weights", str(weights50), "-o", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    metadata = export.read_metadata(path)
    assert metadata["weights_sha256"] == swsl.weights.file_sha256(weights50)
    assert metadata["golden"] == export.read_metadata(frozen50)["golden"]


def test_fingerprints_tell_models_apart(frozen_small: Path, tmp_path: Path) -> None:
    labels = ["cat", "dög", 'a "quoted" fish']
    found = swsl.EagerRunner(small_model(), spec=SMALL_SPEC, labels=labels).fingerprint
    assert (
        found == export.read_metadata(frozen_small)["fingerprint"] == FrozenRunner(frozen_small).fingerprint
    )
    other = small_model()
    other.layer4[0].bn2.running_var[0] *= 1.0001
    others = [
        swsl.EagerRunner(other, spec=SMALL_SPEC, labels=labels),
        swsl.EagerRunner(small_model(), spec=swsl.PreprocessSpec((64, 48), 0.8, "bicubic"), labels=labels),
        swsl.EagerRunner(small_model(), spec=SMALL_SPEC, labels=labels[::-1]),
    ]
    assert len({found, *(runner.fingerprint for runner in others)}) == 4
