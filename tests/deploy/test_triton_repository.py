"""Triton model repositories: what Triton's own definition and server make of them, that their module is the frozen one, and whose
files are replaced."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, seed_model

import swsl
from swsl.cli.main import main
from swsl.deploy import triton_repository
from swsl.formats.golden import TOLERANCES, output_error
from swsl.formats.metadata import read_metadata

LABELS = ["cat", "dög", 'a `quoted`\r\nfish: "x" \\']
LINES = ["cat", "dög", 'a `quoted` fish: "x" \\']
SPEC = swsl.PreprocessSpec((64, 48), 0.9, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
LICENSE = 'My "own"\nlicence'
FILES = ["1/model.pt", "config.pbtxt", "labels.txt"]


def small_model() -> swsl.ResNeXt:
    return seed_model(swsl.ResNeXt((1, 1, 1, 1), 2, 4, 3))


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write(folder: Path) -> None:
    swsl.export_triton(small_model(), folder, spec=SPEC, labels=LABELS, license=LICENSE)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "repository"
    write(folder / "tiny")
    return folder


@pytest.fixture
def frozen_before(repository: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is written, by the module of ``repository``, since another would take seconds."""
    asked: list[Path] = []

    def copy(_: object, path: Path, **__: object) -> None:
        asked.append(path)
        shutil.copy(repository / "tiny" / "1" / "model.pt", path)

    monkeypatch.setattr(triton_repository, "export_model", copy)
    return asked


def test_the_folder_holds_a_frozen_module_and_its_labels(repository: Path) -> None:
    found = contents(repository / "tiny")
    assert list(found) == FILES
    assert found["labels.txt"].decode("utf-8").split("\n") == [*LINES, ""]
    assert read_metadata(repository / "tiny" / "1" / "model.pt")["labels"] == LABELS
    assert [path.name for path in repository.iterdir()] == ["tiny"]


@pytest.mark.slow
def test_the_module_is_what_the_frozen_file_is(repository: Path, tmp_path: Path) -> None:
    swsl.export_model(small_model(), tmp_path / "model.pt", spec=SPEC, labels=LABELS, license=LICENSE)
    both = []
    for path in (tmp_path / "model.pt", repository / "tiny" / "1" / "model.pt"):
        with zipfile.ZipFile(path) as archive:
            both.append({name: archive.read(name) for name in archive.namelist()})
    # TorchScript counts the classes that a process has compiled.
    counted = re.compile(r"/code/|/data\.pkl$|serialization_id$")
    alone, within = ({k: v for k, v in each.items() if not counted.search(k)} for each in both)
    assert len(alone) > 10
    assert alone == within


@pytest.mark.slow
def test_tritons_definition_reads_the_configuration(repository: Path) -> None:
    definition = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    folder = repository / "tiny"
    config = text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), definition.ModelConfig())
    assert (config.name, config.backend, config.platform) == ("", "pytorch", "pytorch_libtorch")
    assert config.HasField("dynamic_batching")
    (input_,), (output,) = config.input, config.output
    # The backend counts from the name (its naming convention), and takes what forward gives as outputs.
    assert (input_.name, output.name) == ("INPUT__0", "OUTPUT__0")
    assert input_.data_type == output.data_type == definition.TYPE_FP32
    assert list(input_.dims) == [3, *SPEC.input_size]

    module = torch.jit.load(str(folder / "1" / "model.pt"))
    assert len(module.forward.schema.arguments) == 2  # the module and one batch
    assert config.max_batch_size > 1
    for count in (1, config.max_batch_size):
        batch = torch.randn(count, *input_.dims, generator=torch.Generator().manual_seed(1))
        logits = module(batch)
        assert isinstance(logits, torch.Tensor)
        assert logits.dtype == torch.float32
        assert list(logits.shape) == [count, *output.dims]
        features = module.embed(batch)
        assert output_error(small_model(), batch, logits=logits, features=features) <= TOLERANCES["float32"]

    assert (folder / output.label_filename).read_text("utf-8").splitlines() == LINES
    metadata = read_metadata(folder / "1" / "model.pt")
    said = {key: json.loads(value.string_value) for key, value in config.parameters.items()}
    assert said["swsl.license"] == LICENSE
    assert said["swsl.preprocess"]["crop_pct"] == 0.9
    assert said.keys() >= {"swsl.fingerprint", "swsl.variant", "swsl.versions", "swsl.weights_sha256"}
    assert all(metadata[key.removeprefix("swsl.")] == value for key, value in said.items())


BACKEND = """
import json, sys
sys.path += {paths}
import torch
import triton_python_backend_utils as utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, arguments):
        config = json.loads(arguments["model_config"])
        self.input, self.output = config["input"][0]["name"], config["output"][0]["name"]
        self.module = torch.jit.load("/".join([arguments["model_repository"], arguments["model_version"], "model.pt"]))

    def execute(self, requests):
        batches = [
            torch.from_dlpack(utils.get_input_tensor_by_name(request, self.input).to_dlpack()) for request in requests
        ]
        with torch.inference_mode():
            logits = self.module(torch.cat(batches)).split([len(batch) for batch in batches])
        return [
            utils.InferenceResponse([utils.Tensor.from_dlpack(self.output, torch.to_dlpack(part.clone()))])
            for part in logits
        ]
"""


def server_folder() -> Path:
    """Of the wheel that brings Triton's server with its Python backend alone; `pip install --no-deps nvidia-pytriton`."""
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs Triton's server: pip install --no-deps nvidia-pytriton")
    folder = Path(found.submodule_search_locations[0], "tritonserver")
    if not (folder / "python_backend_stubs" / f"3.{sys.version_info.minor}").is_dir():
        pytest.skip(f"nvidia-pytriton has no backend for Python 3.{sys.version_info.minor}")
    return folder


@pytest.mark.slow
def test_tritons_server_serves_it(
    repository: Path, tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture
) -> None:
    """The server itself, with a stand-in for the backend in C++, which only its container has: the configuration, the batches and
    the labels are the server's work."""
    grpc: Any = pytest.importorskip("tritonclient.grpc")
    server, backends = server_folder(), tmp_path / "backends"
    for name, sources in {
        "python": [
            *(server / "backends" / "python").iterdir(),
            *(server / "python_backend_stubs" / f"3.{sys.version_info.minor}").iterdir(),
        ],
        "pytorch": [],
    }.items():
        (backends / name).mkdir(parents=True)
        for source in sources:
            if source.is_file():
                shutil.copy(source, backends / name)  # it refuses links
    paths = [path for path in sys.path if "site-packages" in path]
    (backends / "pytorch" / "model.py").write_text(BACKEND.format(paths=paths))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    libraries = [str(server.parents[1] / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    command = [
        server / "bin" / "tritonserver", "--model-repository", repository, "--backend-directory", backends, "--allow-metrics=0",
        "--allow-http=0", "--grpc-address", "127.0.0.1", "--grpc-port", port,
    ]  # fmt: skip
    with open(tmp_path / "log", "w+b") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=log, env={"LD_LIBRARY_PATH": ":".join(libraries)}
        )
        try:
            while b"Started GRPCInferenceService" not in (tmp_path / "log").read_bytes():
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
            client = grpc.InferenceServerClient(f"127.0.0.1:{port}")
            batch = torch.randn(5, 3, *SPEC.input_size, generator=torch.Generator().manual_seed(1))
            sent = grpc.InferInput("INPUT__0", batch.shape, "FP32")
            sent.set_data_from_numpy(batch.numpy())
            logits = torch.from_numpy(client.infer("tiny", [sent]).as_numpy("OUTPUT__0").copy())
            module = torch.jit.load(str(repository / "tiny" / "1" / "model.pt"))
            with torch.inference_mode():
                assert torch.allclose(logits, module(batch), rtol=1e-4, atol=1e-4)
            classes = client.infer(
                "tiny", [sent], outputs=[grpc.InferRequestedOutput("OUTPUT__0", class_count=3)]
            ).as_numpy("OUTPUT__0")
            section = (ROOT / "docs" / "scale.md").read_text("utf-8").split("## Triton")[1]
            (example, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
            shutil.copy(photo, "photo.jpg")
            exec(
                example.replace("localhost:8001", f"127.0.0.1:{port}").replace(
                    "swsl_resnext50_32x4d", "tiny"
                ),
                {},
            )
            images = swsl.preprocess_batch([swsl.load_image("photo.jpg")], SPEC)
            with torch.inference_mode():
                (best,) = module(images).argmax(1).tolist()
            assert f":{best}:{LINES[best]}" in capsys.readouterr().out.splitlines()[0]
            for row, answers in zip(logits, classes, strict=True):
                found = [answer.decode("utf-8").split(":", 2)[1:] for answer in answers]
                assert found == [
                    [str(index), LINES[index]] for index in row.argsort(descending=True).tolist()
                ]
        finally:
            process.terminate()
            process.wait(60)


def test_only_our_own_folder_is_written_anew(
    repository: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture, frozen_before: list[Path]
) -> None:
    before = contents(repository / "tiny")
    folder = tmp_path / "tiny"
    (folder / "2").mkdir(parents=True)
    for name, data in before.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "2" / "model.pt").write_bytes(b"mine")
    (folder / "config.pbtxt").write_text(triton_repository._UNFINISHED)  # as one that was cut short leaves it
    (folder / "labels.txt").write_text("other\n")
    write(folder)
    assert contents(folder) == {**before, "2/model.pt": b"mine"}
    write(folder)
    assert list(contents(folder)) == sorted([*FILES, "2/model.pt"])

    others = tmp_path / "others" / trained.parent.name
    others.mkdir(parents=True)
    (others / "config.pbtxt").write_text('backend: "onnxruntime"\n')
    with pytest.raises(FileExistsError, match="holds files that are not of an export for Triton"):
        write(others)
    assert main(["export", str(trained), "--format", "triton", "-o", str(others.parent)]) == 1
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert list(contents(others)) == ["config.pbtxt"]
    (tmp_path / "file").touch()
    for name, error, says in (
        ("file", NotADirectoryError, "file: is a file"),
        ("file/tiny", NotADirectoryError, "file: is a file"),
        ("no/repository/tiny", FileNotFoundError, r"there is no folder .*/no; make it first"),
    ):
        with pytest.raises(error, match=says):
            write(tmp_path / name)


def test_a_failure_leaves_what_was_there(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    model = small_model()
    with pytest.raises(ValueError, match="labels: expected 3, one a class, got 1"):
        swsl.export_triton(model, tmp_path / "new" / "tiny", spec=SPEC, labels=["cat"])
    model.fc.bias.data[0] = float("nan")
    where = re.escape(str(tmp_path / "new" / "tiny" / "1" / "model.pt"))
    with pytest.raises(swsl.ModelError, match=f"^{where}: not written, since 1 tensors"):
        swsl.export_triton(model, tmp_path / "new" / "tiny", spec=SPEC, labels=LABELS)
    before = contents(repository)
    request.getfixturevalue("frozen_before")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(triton_repository, "_config", full)
    for folder in (tmp_path / "new" / "tiny", repository / "tiny"):
        with pytest.raises(OSError, match="No space left"):
            write(folder)
    assert contents(repository) == before
    monkeypatch.setattr(triton_repository, "has_torchscript", lambda: False)
    with pytest.raises(
        swsl.ModelError, match=r"Triton's PyTorch backend runs TorchScript, which torch .* 3\.13"
    ):
        write(tmp_path / "new" / "tiny")
    assert not (tmp_path / "new").exists()


def test_the_command_names_the_model(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture, frozen_before: list[Path]
) -> None:
    repository = tmp_path / "repository"
    arguments = ["--format", "triton", "-o", f"{repository}/"]
    assert main(["export", str(trained), *arguments]) == 0
    folder = repository / trained.parent.name
    assert re.fullmatch(rf"{folder}: {trained}, \d+ MB, weights of your own\n", capsys.readouterr().out)
    assert list(contents(folder)) == FILES
    assert main(["export", "--from", "timm:resnet10t", "--no-pretrained", *arguments]) == 0
    assert [path.parents[1].name for path in frozen_before] == [folder.name, "resnet10t"]
    assert sorted(path.name for path in repository.iterdir()) == sorted([folder.name, "resnet10t"])
    for words, says in (
        (
            ["resnext50_32x4d_swsl", "--format", "triton"],
            "--output: --format triton needs the folder to write",
        ),
        (arguments, "expected a NAME, a FILE or --from"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["export", *words])
        assert says in capsys.readouterr().err


@pytest.mark.slow
def test_a_published_variant_and_a_network_of_timm(weights50: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for words, name in (
        (["resnext50_32x4d_swsl", "--weights", str(weights50)], "swsl_resnext50_32x4d"),
        (["--from", "timm:resnet10t", "--no-pretrained"], "resnet10t"),
    ):
        assert main(["export", *words, "--format", "triton", "-o", str(repository)]) == 0
        labels = (repository / name / "labels.txt").read_text("utf-8").splitlines()
        assert len(labels) == 1000
        assert torch.jit.load(str(repository / name / "1" / "model.pt"))(
            torch.zeros(2, 3, 224, 224)
        ).shape == (2, 1000)
    assert labels[0] == "tench"
