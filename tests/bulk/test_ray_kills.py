"""What is killed while a run on many machines is under way, at random moments: in the end every row is there once.

`SWSL_KILLS=20 pytest -m slow -o faulthandler_timeout=0 tests/bulk/test_ray_kills.py` takes so many of each kind; CI takes one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import MARKS, STORE, cluster_of, make_folder, rows_of, same_rows, swsl_process

import swsl
from swsl.cli.main import main

pytestmark = MARKS
KILLS = int(os.environ.get("SWSL_KILLS", "1"))
IMAGES = 400
TIMEOUT_S = 500


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with cluster_of(1, 1) as made:
        yield made


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of it takes some seconds, within which there is something to kill."""
    path = tmp_path_factory.mktemp("slow") / "slow.pt"
    network = swsl.ResNeXt((1, 1, 1, 1), groups=1, width_per_group=4, num_classes=7).eval()
    swsl.export_model(network, path, spec=swsl.PreprocessSpec(input_size=(320, 320)), labels="ABCDEFG")
    return str(path)


@pytest.fixture(scope="module")
def command(slow_model: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = make_folder(tmp_path_factory.mktemp("kills") / "photos", IMAGES)
    return ["classify", str(folder), "--runner", slow_model, "--top-k", "2"]


@pytest.fixture(scope="module")
def expected(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    target = tmp_path_factory.mktemp("single") / "one.parquet"
    assert main([*command, "-o", str(target)]) == 1
    return rows_of(target)


def parts_in(folder: Path) -> int:
    return len(list(folder.glob("*.parquet")))


def wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not ready():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_driver(
    number: int, cluster: Any, command: list[str], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Again and again, until so many were killed; each run goes on with the last one's folder, until that is complete."""
    rng, runs, killed = random.Random(), 0, 0
    while killed < KILLS:
        runs += 1
        out = tmp_path / f"out{runs}"
        complete = False
        while not complete:
            process = swsl_process(*command, "--ray", cluster.address, "-o", str(out), "--resume")
            if killed < KILLS:
                enough = parts_in(out) + rng.randrange(4)
                wait_for(
                    lambda process=process, enough=enough, out=out: (
                        parts_in(out) >= enough or process.poll() is not None
                    )
                )
                time.sleep(rng.uniform(0, 1.5) if enough else rng.uniform(0, 15))
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
            told, _ = process.communicate(timeout=TIMEOUT_S)
            killed += process.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM)
            if process.returncode == 128 + signal.SIGTERM and parts_in(out):
                assert "go on with --resume" in told
            complete = process.returncode == 1 and f"{len(expected)} rows are in" in told
            assert complete or process.returncode in (
                -signal.SIGKILL,
                128 + signal.SIGTERM,
                -signal.SIGTERM,
            ), told[-3000:]
        same_rows(rows_of(out), expected)


def actors_of(cluster: Any) -> list[int]:
    """The processes of a run's actors, on any node of the cluster."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            title = (folder / "cmdline").read_bytes()
            if int(words[1]) in raylets and title.startswith(b"ray::") and b"Answers" in title:
                found.append(int(folder.name))
    return found


def test_actors(cluster: Any, command: list[str], expected: list[dict[str, Any]], tmp_path: Path) -> None:
    """Two in a run at most: each batch is tried six times."""
    rng, runs, killed = random.Random(), 0, 0
    while killed < KILLS:
        runs += 1
        out = tmp_path / f"out{runs}"
        process = swsl_process(*command, "--ray", cluster.address, "-o", str(out))
        for _ in range(2):
            wait_for(lambda process=process: bool(actors_of(cluster)) or process.poll() is not None)
            time.sleep(rng.uniform(0, 6))
            for victim in rng.sample(actors_of(cluster), 1) if actors_of(cluster) else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed += 1
        told, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 1, told[-3000:]
        assert f"{len(expected)} rows are in" in told
        same_rows(rows_of(out), expected)


@pytest.mark.parametrize("another", [False, True], ids=["and none comes", "and another comes"])
def test_a_node_leaves(
    another: bool, cluster: Any, command: list[str], expected: list[dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Its actor, its blocks and its tasks are gone. Without another the run begins again, with one it need not."""
    if not another:
        monkeypatch.setattr("swsl.bulk.ray_job._LOST_NODE_S", 3.0)
    rng, runs = random.Random(), 0
    while_running: list[bool] = []
    while sum(while_running) < KILLS:
        runs += 1
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE)]
        cluster.wait_for_nodes()
        out = tmp_path / f"out{runs}"
        ended = threading.Event()

        def remove(nodes: list[Any] = nodes, out: Path = out, ended: threading.Event = ended) -> None:
            enough = rng.randrange(4)
            while parts_in(out) < enough and not ended.is_set():
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 3) if enough else rng.uniform(0, 8))
            while_running.append(not ended.is_set())
            cluster.remove_node(nodes.pop(), allow_graceful=False)
            if another:
                nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE))

        thread = threading.Thread(target=remove)
        thread.start()
        try:
            assert main([*command, "--ray", "auto", "-o", str(out)]) == 1
        finally:
            ended.set()
            thread.join()
        told = capsys.readouterr().err
        assert f"{len(expected)} rows are in" in told
        assert not (another and "NodeLostError" in told)
        same_rows(rows_of(out), expected)
        for node in nodes:
            cluster.remove_node(node)
