"""Memory of a run on many machines: not more for more images. `SWSL_RAY_IMAGES=100000` asks for so many; CI takes fewer."""

from __future__ import annotations

import contextlib
import os
import tarfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from ray_cluster import MARKS, add_to_tar, cluster_of, photograph, rows_of

from swsl.cli.main import main

pytestmark = MARKS
IMAGES = int(os.environ.get("SWSL_RAY_IMAGES", "20000"))
SHARDS = 20


def resident(cluster: Any) -> dict[int, tuple[str, int]]:
    """Of the nodes' processes and this one: what each does, and the bytes that are its alone."""
    ours = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()} | {os.getpid()}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if int(folder.name) in ours or parent in ours:
                lines = (folder / "status").read_text().splitlines()
                facts = dict(line.split(":", 1) for line in lines if ":" in line)
                title = (folder / "cmdline").read_bytes().partition(b"\0")[0].decode()
                found[int(folder.name)] = (title, int(facts.get("RssAnon", "0 kB").split()[0]) * 1024)
    return found


def test_memory_does_not_grow_with_the_images(tiny: list[str], tmp_path: Path) -> None:
    """Twice the images, and no process takes more for them, but for their names in this one: 300 bytes each. How many processes there
    are is Ray's, and not in proportion."""
    images = [photograph(number, (12, 12)) for number in range(50)]
    for number in range(SHARDS):
        with tarfile.open(tmp_path / f"{number:02}.tar", "w") as shard:
            for image in range(IMAGES // SHARDS):
                add_to_tar(shard, f"{image}.jpg", images[image % 50])
    largest: dict[str, dict[str, int]] = {}
    most: dict[str, int] = {}
    for part in ("0?", "??"):
        with cluster_of(1, 1) as cluster:
            ended, seen, count = threading.Event(), Counter[str](), [0]

            def watch(
                cluster: Any = cluster,
                ended: threading.Event = ended,
                seen: Counter[str] = seen,
                count: list[int] = count,
            ) -> None:
                while not ended.wait(0.2):
                    now = resident(cluster)
                    count[0] = max(count[0], len(now))
                    for pid, (title, size) in now.items():
                        kind = "driver" if pid == os.getpid() else title.partition("(")[0]
                        seen[kind] = max(seen[kind], size)

            thread = threading.Thread(target=watch)
            thread.start()
            try:
                out = tmp_path / f"out-{len(largest)}"
                arguments = ["classify", f"{tmp_path}/{part}.tar", *tiny, "--top-k", "1", "--ray", "auto"]
                assert main([*arguments, "-o", str(out)]) == 0
                assert thread.is_alive()  # it has watched to the end
            finally:
                ended.set()
                thread.join()
            largest[part], most[part] = dict(seen), count[0]
    assert len({row["path"] for row in rows_of(out)}) == IMAGES
    for kind in ("driver", "ray::MapWorker", "ray::ReadBytes", "ray::Write"):
        half, whole = (largest[part].get(kind, 0) for part in ("0?", "??"))
        print(f"{kind}: {half / 1e6:.0f} MB, of twice the images {whole / 1e6:.0f} MB")
        if half and whole:  # short tasks are not always met
            assert whole - half < 100e6 + (300 * IMAGES / 2 if kind == "driver" else 0)
    assert largest["??"]["ray::MapWorker"] and most["??"] <= most["0?"] + 4  # noqa: PT018
