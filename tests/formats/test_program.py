"""`.pt2`: what is inside, that every way of running it computes what the model does, and that no reader runs code in it."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import rewrite_archive, seed_model
from torch import nn

import swsl
from swsl.cli.main import main
from swsl.deploy import export
from swsl.deploy.export import ModelError, export_model, read_metadata, verify
from swsl.deploy.frozen import FrozenRunner
from swsl.deploy.runner import Runner, build_info
from swsl.formats.golden import TOLERANCES, output_error
from swsl.formats.network_table import run_table

SPEC = swsl.PreprocessSpec((64, 48), 0.9, "bicubic")
SHAPES = ((1, 3, 64, 48), (3, 3, 33, 47))
needs_runner = pytest.mark.skipif(not build_info()["compiled"], reason=str(build_info().get("reason")))


def small_model() -> swsl.ResNeXt:
    return seed_model(swsl.ResNeXt((1, 1, 1, 1), 4, 4, 3))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same model as m.pt and m.pt2."""
    folder = tmp_path_factory.mktemp("program")
    for name in ("m.pt", "m.pt2"):
        export_model(small_model(), folder / name, spec=SPEC, labels="abc")
    return folder


def test_pytorch_alone_runs_it(files: Path) -> None:
    program = torch.export.load(files / "m.pt2")
    run = program.module()
    for shape in SHAPES:
        batch = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        logits, features = run(batch)
        assert output_error(small_model(), batch, logits=logits, features=features) <= TOLERANCES["float32"]
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {
        "aten.conv2d.default", "aten.relu_.default", "aten.add_.Tensor", "aten.max_pool2d.default",
        "aten.adaptive_avg_pool2d.default", "aten.flatten.using_ints", "aten.linear.default",
    }  # fmt: skip


def test_a_small_input_has_a_program_of_its_size(tmp_path: Path) -> None:
    export_model(small_model(), tmp_path / "m.pt2", spec=swsl.PreprocessSpec((64, 32)), labels="abc")
    run = torch.export.load(tmp_path / "m.pt2").module()
    batch = torch.randn(5, 3, 64, 32, generator=torch.Generator().manual_seed(3))
    assert output_error(small_model(), batch, logits=run(batch)[0]) <= TOLERANCES["float32"]
    batch = torch.randn(2, 3, 47, 33, generator=torch.Generator().manual_seed(3))
    logits, _ = run_table(tmp_path / "m.pt2", batch)  # of any size, as ever
    assert output_error(small_model(), batch, logits=logits) <= TOLERANCES["float32"]


def test_every_runner_takes_either_file(files: Path) -> None:
    for kind in (FrozenRunner, *([Runner] if build_info()["compiled"] else [])):
        pt, pt2 = (kind(files / name) for name in ("m.pt", "m.pt2"))
        assert (pt.fingerprint, pt.labels, pt.spec) == (pt2.fingerprint, pt2.labels, pt2.spec)
        for shape in SHAPES:
            batch = torch.randn(shape, generator=torch.Generator().manual_seed(3))
            assert output_error(small_model(), batch, logits=pt2.forward(batch)) <= TOLERANCES["float32"]
        image = torch.zeros(80, 70, 3, dtype=torch.uint8)
        torch.testing.assert_close(pt2.embed([image]), pt.embed([image]))
    assert verify(files / "m.pt2") <= TOLERANCES["float32"]


def test_it_holds_what_a_pt_holds(files: Path) -> None:
    pt, pt2 = (read_metadata(files / name) for name in ("m.pt", "m.pt2"))
    entries = [
        (item[part].pop("entry"), item[part])
        for metadata in (pt, pt2)
        for item in metadata["network"]["operators"]
        for part in ("weight", "bias")
        if item.get(part)
    ]
    assert pt == pt2  # but for where the weights lie
    assert {entry.rpartition("/")[0] for entry, _ in entries} == {"constants", "data/weights"}
    with zipfile.ZipFile(files / "m.pt2") as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"m"}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert (files / "m.pt2").stat().st_size < (files / "m.pt").stat().st_size + 500_000


def test_an_operator_that_no_engine_has_is_named(tmp_path: Path) -> None:
    model = small_model()
    model.maxpool = nn.GroupNorm(4, 64)
    with pytest.raises(
        ModelError, match=r"m\.pt2: not written, since the model computes groupnorm, which swsl"
    ):
        export_model(model, tmp_path / "m.pt2", spec=SPEC, labels="abc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["program", "network table"])
def test_a_file_that_computes_something_else_is_not_written(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: object) -> object:
        answers = small_model()
        answers.fc.bias.data += 1
        return lambda batch: (
            answers(batch),
            answers.forward_head(answers.forward_features(batch), pre_logits=True),
        )

    class Loaded:
        module = other

    if way == "program":
        monkeypatch.setattr(torch.export, "load", lambda _: Loaded())
    else:
        monkeypatch.setattr(export, "NetworkTable", other)
    (tmp_path / "m.pt2").write_text("before")
    with pytest.raises(ModelError, match=rf"m\.pt2: not written, since the {way}'s answers to an input of"):
        export_model(small_model(), tmp_path / "m.pt2", spec=SPEC, labels="abc")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.pt2", "before")]


class Intruder:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def with_code(path: Path, target: Path, mark: Path) -> Path:
    """A .pt2 that leaves ``mark`` when torch.export loads it."""
    pickled = io.BytesIO()
    torch.save((Intruder(mark), {}), pickled)

    def change(name: str, data: bytes) -> bytes:
        return pickled.getvalue() if "sample_inputs" in name else data

    return rewrite_archive(path, change, target)


def test_no_reader_runs_code_in_it(files: Path, tmp_path: Path) -> None:
    mark = tmp_path / "intruder"
    path = with_code(files / "m.pt2", tmp_path / "m.pt2", mark)
    read_metadata(path)
    verify(path)
    run_table(path, torch.zeros(SHAPES[0]))
    FrozenRunner(path).forward(torch.zeros(SHAPES[0]))
    if build_info()["compiled"]:
        Runner(path).forward(torch.zeros(SHAPES[0]))
        assert pickle.loads(pickle.dumps(Runner(path))).fingerprint
    assert not mark.exists()
    with warnings.catch_warnings(), contextlib.suppress(Exception):  # it may mind what it has unpickled
        warnings.simplefilter("ignore")
        torch.export.load(path)
    assert mark.exists(), "torch.export.load no longer runs code in a file: then verify could use it"


def test_an_older_torch_is_told_to_write_a_pt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.8.1+cpu")
    with pytest.raises(
        ModelError, match=r"m\.PT2: not written, since a \.pt2 needs torch 2\.9, .* 2\.8\.1.*name a \.pt"
    ):
        export_model(small_model(), tmp_path / "m.PT2", spec=SPEC, labels="abc")


class Answering(nn.Module):
    """A classifier whose answer is made by a function of its logits."""

    def __init__(self, answer: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.network, self.answer = small_model(), answer

    def forward(self, x: torch.Tensor) -> object:
        return self.answer(self.network(x))


def test_another_module_has_to_answer_with_logits(tmp_path: Path) -> None:
    for answer in (lambda x: {"logits": x}, lambda x: (x,)):
        with pytest.raises(ModelError, match=r"returns its logits in a (dict|tuple); wrap it in a module"):
            export_model(Answering(answer), tmp_path / "m.pt2", spec=SPEC, labels="abc")
    with pytest.raises(ModelError, match="does not end in one linear layer"):
        export_model(Answering(torch.relu), tmp_path / "m.pt2", spec=SPEC, labels="abc")
    model = Answering(lambda x: x)
    model.network.fc = _Detached(model.network.fc)  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"the model computes aten\.(detach|alias)"):
        export_model(model, tmp_path / "m.pt2", spec=SPEC, labels="abc")
    assert list(tmp_path.iterdir()) == []


class _Detached(nn.Module):
    def __init__(self, fc: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = fc.weight, fc.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.detach(), self.bias)


def test_another_module_has_to_say_how_its_images_are_prepared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="spec: expected a PreprocessSpec, since Answering does not say how"):
        export_model(Answering(lambda x: x), tmp_path / "m.pt2", labels="abc")


def test_a_compiled_model_is_the_model(files: Path, tmp_path: Path) -> None:
    export_model(torch.compile(small_model()), tmp_path / "m.pt2", spec=SPEC, labels="abc")  # type: ignore[arg-type]
    assert read_metadata(tmp_path / "m.pt2")["fingerprint"] == read_metadata(files / "m.pt2")["fingerprint"]


def test_a_program_of_others_is_named(tmp_path: Path) -> None:
    program = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(
        ModelError,
        match=r"other\.pt2: a program of torch\.export without swsl\.json inside: not exported by swsl",
    ):
        read_metadata(tmp_path / "other.pt2")


@needs_runner
def test_where_libtorch_alone_could_compute_the_cure_is_named(files: Path) -> None:
    with pytest.raises(
        ModelError, match=r"m\.pt2: .* float32 and bfloat16 only, and LibTorch does not run .*; export"
    ):
        Runner(files / "m.pt2", dtype="float16")


def test_commands_take_it(
    trained: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(export, "has_torchscript", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(trained)]) == 0
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["model.pt2"]
    assert main(["verify", "model.pt2"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"model\.pt2: relative error \S+ on the CPU, by its network table; .* was not run\n", said
    )
    if build_info()["compiled"]:
        for command in (["classify", str(photo), "--runner"], ["profile"]):
            assert main([*command, "model.pt2"]) == 0
    assert json.loads(zipfile.ZipFile("model.pt2").read("model/extra/swsl.json"))["labels"] == ["0", "1", "3"]
