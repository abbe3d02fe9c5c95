"""A cluster of several nodes on this machine, an object store beside it, and what the tests of Ray Data ask of them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from conftest import subprocess_environment
from PIL import Image

from swsl.bulk.ray import KEPT_WORKERS

MISSING = [name for name in ("ray", "moto") if importlib.util.find_spec(name) is None]
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs pip install 'ray[data]' 'moto[server]': no {MISSING}"),
]
STORE = 80 << 20  # bytes of each node's object store, about the least that Ray takes


@contextlib.contextmanager
def cluster_of(*cpus: int) -> Iterator[Any]:
    """Nodes of so many CPUs, this process connected to them, and S3 in a server of this process."""
    import ray
    from moto.server import ThreadedMotoServer
    from ray.cluster_utils import Cluster

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")  # each node has it from here
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("PYTHONPATH", subprocess_environment()["PYTHONPATH"])
        patch.chdir(
            "/"
        )  # from where Ray's processes would import: the checkout, whose sources have no compiled runner
        first, *others = ({"num_cpus": each, "object_store_memory": STORE} for each in cpus)
        # A busy machine is no dead node; one that is gone refuses at once.
        settings = {"health_check_timeout_ms": 60_000, "num_workers_soft_limit": KEPT_WORKERS}
        head = {**first, "include_dashboard": False, "_system_config": settings}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for each in others:
                cluster.add_node(**each)
            cluster.wait_for_nodes()
            ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            server.stop()


def photograph(number: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A JPEG, each of its number different."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def make_folder(folder: Path, count: int) -> Path:
    """Photographs, and two files that are none."""
    (folder / "below").mkdir(parents=True)
    for number in range(count):
        (folder / ("below" if number % 3 else "") / f"{number:04}.jpg").write_bytes(photograph(number))
    (folder / "empty.png").write_bytes(b"")
    (folder / "bad.jpg").write_bytes(b"no image")
    return folder


def add_to_tar(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    shard.addfile(info, io.BytesIO(data))


def rows_of(where: Path | str, files: Any = None) -> list[dict[str, Any]]:
    """Of a file or of a folder of parts, by their paths."""
    table = pa.dataset.dataset(str(where), format="parquet", filesystem=files).to_table()
    return sorted(table.to_pylist(), key=lambda row: row["path"])


def same_rows(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Floats to the tolerance of one network in batches of other sizes, everything else to the letter."""
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for column, value in theirs.items():
            if value is not None and column in ("probability", "embedding", "logits"):
                assert ours[column] == pytest.approx(value, rel=1e-4, abs=1e-5)
            else:
                assert ours[column] == value, ours["path"]


def schema_of(folder: Path) -> Any:
    return pq.read_schema(next(folder.glob("*.parquet")))


def swsl_process(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "swsl", *arguments],
        env={**subprocess_environment(), "AWS_ENDPOINT_URL": os.environ.get("AWS_ENDPOINT_URL", "")},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
