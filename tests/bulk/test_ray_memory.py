"""Memory of a run on many machines: not more for more images. `SWSL_RAY_IMAGES=100000` asks for so many; CI takes fewer."""

from __future__ import annotations

import contextlib
import os
import tarfile
import threading
from pathlib import Path
from typing import Any

from ray_cluster import MARKS, add_to_tar, cluster_of, photograph, rows_of

from swsl.cli.main import main

pytestmark = MARKS
IMAGES = int(os.environ.get("SWSL_RAY_IMAGES", "20000"))
SHARDS = 20


def resident(cluster: Any) -> int:
    """Of the nodes' processes, this one's children, and of this one, in bytes; what several share is counted once."""
    ours = {os.getpid(), *(node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes())}
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if int(folder.name) in ours or parent in ours:
                facts = dict(
                    line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
                )
                total += int(facts["RssAnon"].split()[0]) * 1024
    return total


def test_memory_does_not_grow_with_the_images(tiny: list[str], tmp_path: Path) -> None:
    """Twice the images, and at most what their names take more: 300 bytes each in this process."""
    images = [photograph(number, (12, 12)) for number in range(50)]
    for number in range(SHARDS):
        with tarfile.open(tmp_path / f"{number:02}.tar", "w") as shard:
            for image in range(IMAGES // SHARDS):
                add_to_tar(shard, f"{image}.jpg", images[image % 50])
    peaks = {}
    with cluster_of(1, 1) as cluster:
        for part in ("0?", "??"):
            ended, seen = threading.Event(), [0]

            def watch(ended: threading.Event = ended, seen: list[int] = seen) -> None:
                while not ended.wait(0.2):
                    seen.append(resident(cluster))

            thread = threading.Thread(target=watch)
            thread.start()
            try:
                out = tmp_path / f"out-{len(peaks)}"
                arguments = ["classify", f"{tmp_path}/{part}.tar", *tiny, "--top-k", "1", "--ray", "auto"]
                assert main([*arguments, "-o", str(out)]) == 0
            finally:
                ended.set()
                thread.join()
            peaks[part] = max(seen)
    print({part: f"{peak / 1e6:.0f} MB" for part, peak in peaks.items()})
    assert len({row["path"] for row in rows_of(out)}) == IMAGES
    assert peaks["??"] - peaks["0?"] < 150e6 + 300 * IMAGES / 2
