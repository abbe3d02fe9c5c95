"""What several test files share: peers that import, seeded weights, files in the published layout, a local web server."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import swsl
from swsl.deploy.eager import EagerRunner
from swsl.deploy.runner import Runner, build_info
from swsl.formats.golden import TOLERANCES
from swsl.state_dicts import read_state_dict
from swsl.training._torchvision import import_torchvision
from swsl.training.checkpoint import Checkpoint, save_checkpoint
from swsl.training.data import Augmentation
from swsl.training.recipe import Architecture, TrainOptions

with contextlib.suppress(ImportError):  # a machine for `pytest -m cuda` need not have it
    import_torchvision()  # or, beside a CPU build of torch, its import would fail, and timm's with it

# A CI may start its jobs with SIGINT ignored, which the commands that tests interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
NAMES = tuple(swsl.VARIANTS)
# What the runner computes in here, on a CPU: `pip install .` builds it without its LibTorch part.
DTYPES = tuple(dtype for dtype in TOLERANCES if dtype != "float16" or build_info().get("torch"))
SMALL = Architecture((1, 1, 1, 1), groups=2, width_per_group=4)
MakeRunner = Callable[[int], "Runner | EagerRunner"]
"""A runner of batches of so many images."""
SMALL_ARGUMENTS = ("--scratch", "--architecture", "1,1,1,1:2x4", "--input-size", "32", "--no-flip")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`pytest -m cuda` is for machines that may have a GPU and little else: it does not import what peers need."""
    if config.getoption("markexpr") != "cuda" or not collection_path.is_file():
        return None
    return "cuda_marks" not in collection_path.read_text("utf-8") or None


@pytest.fixture(autouse=True)
def torch_home(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Keeps the user's own cache of weights out of every test, and the checkout: `python -m swsl` there would import its sources
    in place of the installed package, which alone has the compiled runner."""
    home = tmp_path / "torch-home"
    monkeypatch.chdir(tmp_path_factory.mktemp("working-directory"))
    monkeypatch.setenv("TORCH_HOME", str(home))
    return home


def seed_model(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights as different from each other as trained ones: BatchNorm's statistics too, or folding them goes untested."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            shape = module.weight.shape
            # Small on the residual branches, as after training: else activations grow with every block.
            scale = 0.2 if name.endswith("bn3") else 1.0
            module.weight.data = scale * (torch.rand(shape, generator=generator) + 0.5)
            module.bias.data = torch.randn(shape, generator=generator) * 0.1
            module.running_mean.data = torch.randn(shape, generator=generator) * 0.1
            module.running_var.data = torch.rand(shape, generator=generator) + 0.5
        elif isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            gain = 2 if isinstance(module, torch.nn.Conv2d) else 1
            deviation = (gain / module.weight[0].numel()) ** 0.5
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * deviation
            if module.bias is not None:
                module.bias.data = torch.randn(module.bias.shape, generator=generator) * 0.1
    return model.eval()


def seeded_model(name: str, **options: object) -> swsl.ResNeXt:
    return seed_model(swsl.create_model(name, pretrained=False, **options))


def save_published_layout(model: torch.nn.Module, path: Path) -> Path:
    """As the published files are: legacy format, a plain OrderedDict, no num_batches_tracked, no _metadata."""
    state = OrderedDict(
        (k, v) for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")
    )
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def rewrite_archive(path: Path, change: Callable[[str, bytes], bytes], target: Path | None = None) -> Path:
    """The same zip archive, of the entries that ``change`` makes of their names and bytes; in its own place by default."""
    with zipfile.ZipFile(path) as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(target or path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, change(name, data))
    return target or path


def small_model(num_classes: int = 5) -> swsl.ResNeXt:
    return swsl.ResNeXt((1, 1, 1, 1), 4, 4, num_classes)


def file_of(content: object, tmp_path: Path, **options: object) -> Path:
    path = tmp_path / "w.pth"
    torch.save(content, path, **options)
    return path


def read_and_listen(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """What was read, and what was said of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_state_dict(path)
    return found, [str(each.message).removeprefix(f"weights: {path}: ") for each in caught]


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def cuda_marks() -> list[pytest.MarkDecorator]:
    """Of tests that need a GPU. Where there is none they are skipped, or with SWSL_REQUIRE_CUDA=1 an error."""
    built = build_info()
    missing = ""
    if not built["compiled"]:
        missing = built["reason"]
    elif not built["cuda"]:
        missing = "the compiled runner was built without torch's CUDA libraries"
    elif not torch.cuda.is_available():
        missing = "torch sees no CUDA device"
    elif not built["cuda_kernels"]:
        missing = "the compiled runner was built without nvcc, so without our kernels"
    if missing and os.environ.get("SWSL_REQUIRE_CUDA") == "1":
        raise RuntimeError(f"SWSL_REQUIRE_CUDA=1, but {missing}")
    return [pytest.mark.cuda, *([pytest.mark.skip(missing)] if missing else [])]


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return dict(small_model().state_dict())


@pytest.fixture(scope="session")
def model50() -> swsl.ResNeXt:
    return seeded_model("swsl_resnext50_32x4d")


@pytest.fixture(scope="session")
def weights50(model50: swsl.ResNeXt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded weights of swsl_resnext50_32x4d in the published layout."""
    return save_published_layout(model50, tmp_path_factory.mktemp("weights") / "seeded50.pth")


@pytest.fixture(scope="session")
def frozen50(model50: swsl.ResNeXt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model50`, exported."""
    path = tmp_path_factory.mktemp("frozen") / "model.pt"
    swsl.export_model(model50, path, weights_sha256="ab" * 32)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three classes, as training writes it."""
    model = seed_model(swsl.ResNeXt((1, 1, 1, 1), 2, 4, 3))
    path = tmp_path_factory.mktemp("trained") / "best.pth"
    save_checkpoint(path, Checkpoint(model, swsl.PreprocessSpec((32, 32)), ("0", "1", "3"), None, None, {}))
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments for a model that takes no time."""
    if not build_info()["compiled"]:
        pytest.skip("a home-made network needs the compiled runner")
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    network = swsl.ResNeXt((1, 1, 1, 1), groups=1, width_per_group=4, num_classes=7).eval()
    swsl.export_model(network, path, spec=swsl.PreprocessSpec(input_size=(64, 64)), labels="ABCDEFG")
    return ["--runner", str(path)]


@pytest.fixture(scope="session", params=["compiled", "eager"])
def make_runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MakeRunner:
    model = seed_model(swsl.ResNeXt((1, 1, 1, 1), groups=4, width_per_group=4, num_classes=10))
    spec = swsl.PreprocessSpec(input_size=(64, 64))
    if request.param == "eager":
        return lambda batch_size: EagerRunner(model, spec=spec, device="cpu", batch_size=batch_size)
    if not build_info()["compiled"] and os.environ.get("SWSL_REQUIRE_RUNNER") != "1":
        pytest.skip(build_info()["reason"])
    path = tmp_path_factory.mktemp("frozen") / "tiny.pt"
    swsl.export_model(model, path, spec=spec, labels=[str(i) for i in range(10)])
    return lambda batch_size: Runner(path, batch_size=batch_size)


@pytest.fixture(scope="session")
def half(frozen50: Path) -> Runner:
    """`frozen50` on a GPU, in float16."""
    return Runner(frozen50, device="cuda", dtype="float16", batch_size=16)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's 1,797 scanned digits as 8×8 PNG files: two thirds in train/, one in val/."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder, data = tmp_path_factory.mktemp("digits"), load_digits()
    for number, (pixels, digit) in enumerate(zip(data.images, data.target, strict=True)):
        path = folder / ("train" if number % 3 else "val") / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(path)
    return folder


@pytest.fixture(scope="session")
def few_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of them: 16 training and 7 validation images each."""
    folder = tmp_path_factory.mktemp("few")
    for part, count in (("train", 16), ("val", 7)):
        for digit in "013":
            (folder / part / digit).mkdir(parents=True)
            for path in sorted((digits / part / digit).iterdir())[:count]:
                shutil.copy(path, folder / part / digit)
    return folder


@pytest.fixture
def options(few_digits: Path, tmp_path: Path) -> TrainOptions:
    """A run of a second or two."""
    return TrainOptions(
        data=few_digits, output=tmp_path / "run", scratch=True, architecture=SMALL, input_size=32, epochs=2,
        batch_size=8, learning_rate=0.01, workers=0, device="cpu", augmentation=Augmentation(0.7, flip=False),
    )  # fmt: skip


@pytest.fixture
def folders(few_digits: Path, tmp_path: Path) -> Path:
    """A copy of the few digits that a test may damage."""
    return Path(shutil.copytree(few_digits, tmp_path / "copy"))


@pytest.fixture(scope="session")
def photo() -> Path:
    return ROOT / "swsl" / "cli" / "chelsea.jpg"


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> list[str]:
    """The arguments that spare a command the freezing of its variant, where there is a runner for frozen modules."""
    if build_info()["compiled"]:
        return ["--runner", str(request.getfixturevalue("frozen50"))]
    return ["--weights", str(request.getfixturevalue("weights50"))]


@pytest.fixture(scope="session")
def classify_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`swsl-classify`; SWSL_CLASSIFY names one that is built already."""
    if path := os.environ.get("SWSL_CLASSIFY"):
        return Path(path)
    build = tmp_path_factory.mktemp("build")
    configure = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (configure, ["cmake", "--build", build, "--target", "swsl-classify"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "swsl-classify"


@dataclass
class Server:
    """A web server on this machine. `files` maps a path to its bytes; the sets name paths that misbehave."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    cut_short: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    before_sending: Callable[[], None] = lambda: None
    stop: Callable[[], None] = lambda: None


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.requests.append(self.path)
            body = served.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            served.before_sending()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path in served.cut_short else body)

        def log_message(self, *_: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Server(f"http://127.0.0.1:{httpd.server_port}")
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()

    def stop() -> None:
        httpd.shutdown()
        httpd.server_close()
        thread.join()

    served.stop = stop
    yield served
    if thread.is_alive():
        stop()


def subprocess_environment(**extra: str) -> dict[str, str]:
    """For subprocesses that shall import the same swsl as this process: the installed one under plain `pytest`."""
    return {**os.environ, "PYTHONPATH": str(Path(swsl.__file__).parents[1]), **extra}


def swsl_command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "swsl", *map(str, arguments)]


def with_descendants(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from with_descendants(int(child))
    yield pid


def run(*command: object, code: int = 0, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself with ``code``, or the test fails; one that hangs says where."""
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=subprocess_environment(PYTHONFAULTHANDLER="1"),
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for pid in list(with_descendants(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
        output, errors = process.communicate()
        pytest.fail(f"{words} has not ended after {seconds} s:\n{output}{errors}")
    assert process.returncode == code, output + errors
    return subprocess.CompletedProcess(words, process.returncode, output, errors)
