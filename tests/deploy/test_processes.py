"""Runners in other processes: forked ones, and those that a pickled runner is sent to. And cores: how many a runner takes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DTYPES, seed_model, subprocess_environment

import swsl
from swsl.deploy.eager import EagerRunner
from swsl.deploy.export import ModelError, export_model
from swsl.deploy.frozen import FrozenRunner
from swsl.deploy.runner import Runner, build_info
from swsl.evaluation.profile import profile
from swsl.labels import LABELS

pytestmark = pytest.mark.skipif(not build_info()["compiled"], reason=str(build_info().get("reason")))

SPEC = swsl.PreprocessSpec((64, 64))
_SECONDS = 120


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes") / "model.pt"
    export_model(seed_model(swsl.ResNeXt((1, 1, 1, 1), 4, 4)), path, spec=SPEC, labels=LABELS)
    return path


IMAGES = [np.full((70, 90, 3), value, np.uint8) for value in range(40)]
_BATCH = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BATCHES = (
    _BATCH,
    _BATCH.double(),
    _BATCH.to(memory_format=torch.channels_last),
    _BATCH.repeat(2, 1, 1, 1)[::2],
)


def use_every_method(runner: Runner) -> None:
    """With results that are large enough for torch to share out among threads; without operators of torch in the test itself,
    which would hang in a forked child."""
    assert len(runner.classify(IMAGES)) == 40
    for method, columns in ((runner.logits, 1000), (runner.embed, 2048), (runner.preprocess, 3 * 64 * 64)):
        rows = method(IMAGES).numpy().reshape(40, columns)
        assert np.isfinite(rows).all()
    for batch in BATCHES:
        assert runner.forward(batch).shape == (40, 1000)
    assert sum(result.error is None for result in runner.stream(IMAGES, outputs="logits")) == 40
    runner.profile(_BATCH[: runner.batch_size])


def in_a_forked_child(work: Callable[[], None]) -> None:
    """Calls ``work`` in a fork of this process, which fails where it raises or has not ended in time."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the forked child hangs")


def use_torch() -> None:
    """So that OpenMP has threads, whatever the tests before did."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.randn(500, 500) @ torch.randn(500, 500)
    torch.randn(1 << 20).exp()
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "dtype",
    [
        *sorted({"float32", "float16"} & {*DTYPES}),
        *(pytest.param(d, marks=pytest.mark.slow) for d in ("bfloat16", "auto")),
    ],
)
def test_a_forked_child_makes_and_uses_a_runner(
    path: Path, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # or "auto" remembers another test's answer
    use_torch()
    runner = Runner(path, dtype=dtype, batch_size=16)
    use_every_method(runner)
    in_a_forked_child(lambda: use_every_method(Runner(path, dtype=dtype, batch_size=16)))
    use_every_method(runner)


def test_a_program_that_forks_before_it_has_loaded_the_runner(path: Path) -> None:
    program = (
        "import os, sys, torch, numpy, swsl\n"
        "torch.set_num_threads(2)\n"
        "torch.randn(500, 500) @ torch.randn(500, 500)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    swsl.Runner(sys.argv[1]).classify([numpy.zeros((80, 80, 3), numpy.uint8)])\n"
        "    os._exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(
        command, env=subprocess_environment(), timeout=_SECONDS, capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr


def test_the_parents_runner_is_refused_in_a_child(path: Path) -> None:
    runner = Runner(path, batch_size=4)
    images = [np.zeros((70, 90, 3), np.uint8)] * 5
    batch = runner.preprocess(images)

    def use_it() -> None:
        for method, argument in (
            (runner.classify, images), (runner.logits, images), (runner.embed, images), (runner.preprocess, images),
            (runner.forward, batch), (runner.profile, batch[:4]), (lambda x: list(runner.stream(x)), images),
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match="make the runner in the process that uses it"):
                method(argument)

    in_a_forked_child(use_it)


def test_what_a_child_has_of_its_parents_ends_with_it(path: Path) -> None:
    program = (
        "import gc, itertools, os, sys, time, numpy, swsl\n"
        "from swsl.deploy.runner import Runner\n"
        "children = []\n"
        "for dtype in sys.argv[2:]:\n"
        "    runner = Runner(sys.argv[1], dtype=dtype, cores=3)\n"
        "    stream = runner.stream(itertools.repeat(numpy.zeros((80, 80, 3), numpy.uint8)))\n"
        "    next(stream), runner.logits([numpy.zeros((80, 80, 3), numpy.uint8)])\n"
        "    time.sleep(0.1)\n"  # so that threads wait for work
        "    for end in ('use', 'collect', 'exit'):\n"
        "        children.append(os.fork())\n"
        "        if children[-1] == 0:\n"
        "            if end == 'use':\n"
        "                try:\n"
        "                    for _ in stream: pass\n"
        "                except RuntimeError as error:\n"
        "                    assert 'make the runner in the process that uses it' in str(error)\n"
        "            elif end == 'collect':\n"
        "                stream = runner = None\n"
        "                gc.collect()\n"
        "                os._exit(7)\n"
        "            sys.exit(7)\n"
        "    assert next(stream).predictions\n"
        "    stream.close()\n"
        "end = time.monotonic() + 60\n"
        "codes = []\n"
        "while children and time.monotonic() < end:\n"
        "    child, status = os.waitpid(children[0], os.WNOHANG)\n"
        "    if child: codes.append(os.waitstatus_to_exitcode(status)); children.pop(0)\n"
        "    else: time.sleep(0.02)\n"
        "for child in children: os.kill(child, 9)\n"
        "print(codes)\n"
    )
    dtypes = [dtype for dtype in DTYPES if dtype != "bfloat16"]
    command = [sys.executable, "-c", program, str(path), *dtypes]
    done = subprocess.run(
        command, env=subprocess_environment(), timeout=_SECONDS, capture_output=True, text=True
    )
    assert done.stdout == f"{[7] * (3 * len(dtypes))}\n", done.stdout + done.stderr


def test_a_child_of_a_child(path: Path) -> None:
    use_torch()

    def grandchild() -> None:
        assert _labels(path)
        in_a_forked_child(lambda: _labels(path))

    in_a_forked_child(grandchild)


def test_a_forked_child_times_layers(path: Path) -> None:
    if Runner(path).info.name != "planned":
        pytest.skip(Runner(path).info.reason)
    use_torch()
    in_a_forked_child(lambda: profile(path, batch=16, rounds=1))


def _labels(path: Path) -> list[str]:
    return [p.label for p in Runner(path).classify([np.zeros((70, 90, 3), np.uint8)])[0]]


def test_a_forking_pool(path: Path) -> None:
    use_torch()
    expected = _labels(path)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_labels, [path] * 4).get(_SECONDS) == [expected] * 4


def test_a_pickled_runner_is_made_anew(path: Path) -> None:
    runner = Runner(path, dtype="bfloat16", cores=1, batch_size=3, exif_orientation=True)
    images = [np.zeros((70, 90, 3), np.uint8)]
    for other in (pickle.loads(pickle.dumps(runner)), copy.copy(runner), copy.deepcopy(runner)):
        assert other is not runner
        assert other.info == runner.info
        assert (other.batch_size, other._options) == (3, runner._options)
        assert torch.equal(other.logits(images), runner.logits(images))
    frozen = FrozenRunner(path, device="cpu", batch_size=5)
    assert pickle.loads(pickle.dumps(frozen)).batch_size == 5
    eager = EagerRunner(seed_model(swsl.ResNeXt((1, 1, 1, 1), 4, 4)), spec=SPEC, device="cpu")
    eager.submit(images[0]).result(60)  # by a thread, which stays behind
    assert torch.equal(pickle.loads(pickle.dumps(eager)).logits(images), eager.logits(images))
    eager.close()


class _Embeddings(torch.utils.data.Dataset):
    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.runner.embed([np.full((70, 90, 3), index, np.uint8)])[0]


def test_a_runner_goes_to_spawned_workers(path: Path) -> None:
    data = _Embeddings(Runner(path, cores=1))
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    (found,) = loader
    assert torch.equal(found, torch.stack([data[index] for index in range(4)]))


@pytest.mark.slow
def test_a_pickled_runner_refuses_another_model(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.pt"
    mine.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    pickles = [pickle.dumps(Runner("mine.pt")), pickle.dumps(FrozenRunner("mine.pt"))]
    monkeypatch.chdir("/")
    for data in pickles:
        pickle.loads(data)  # from wherever
    export_model(seed_model(swsl.ResNeXt((1, 1, 1, 1), 4, 4), 1), mine, spec=SPEC, labels=LABELS)
    for data in pickles:
        with pytest.raises(
            ModelError, match=r"mine\.pt: holds another model than when its runner was pickled"
        ):
            pickle.loads(data)
    mine.unlink()
    for data in pickles:
        with pytest.raises(ModelError, match=r"mine\.pt: no such file"):
            pickle.loads(data)


def test_cores_bound_a_runner(path: Path) -> None:
    allotted = subprocess_environment(OMP_NUM_THREADS="1,4")
    program = "import sys, swsl; print(swsl.Runner(sys.argv[1]).info.threads)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], env=allotted, capture_output=True, text=True
    )
    assert done.stdout.strip() == "1", done.stderr

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = threads()
    one = Runner(path, cores=1)
    assert one.info.threads == 1
    assert threads() == before  # its only thread is the caller's
    assert Runner(path, cores=3).info.threads == 3
    assert Runner(path, cores=3, threads=2).info.threads == 2
    with pytest.raises(ValueError, match="threads: expected at most cores, 2, got 3"):
        Runner(path, cores=2, threads=3)
    with pytest.raises(ValueError, match="cores: expected 0 or more, got -1"):
        Runner(path, cores=-1)
