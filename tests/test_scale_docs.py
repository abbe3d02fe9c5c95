"""The commands and the Python of docs/scale.md, run as they stand there."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from test_readme import blocks_of, commands, furnish, run

pytest.importorskip("ray", reason="needs pip install 'ray[data]'")
PAGE = (ROOT / "docs" / "scale.md").read_text("utf-8")
(RAY,) = re.findall(r"^## Many machines: Ray Data$.*?(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_many_machines(tmp_path: Path, weights50: Path, frozen50: Path) -> None:
    """This machine is all of them."""
    folder = furnish(tmp_path, weights50)
    photo = ROOT / "swsl" / "cli" / "chelsea.jpg"
    for name in ("photos", "shards", "tables"):
        (folder / name).mkdir()
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(photo, folder / "photos" / name)
    with tarfile.open(folder / "shards" / "0.tar", "w") as shard:
        shard.add(photo, "a.jpg")
    table = pa.table({"key": ["one", "two"], "jpeg": [photo.read_bytes()] * 2})
    pq.write_table(table, folder / "tables" / "0.parquet")
    (folder / "model.pt").symlink_to(frozen50)
    blocks = blocks_of(RAY)
    lines = commands("swsl ", blocks)
    assert len(lines) == 4
    for line in lines:
        run(folder, "sh", "-c", line)
    read, step = (text for language, text in blocks if language == "python")
    assert run(folder, sys.executable, "-c", read).startswith("2 photos/")
    assert run(folder, sys.executable, "-c", f"import stand_in\n{step}").strip().splitlines()[-1] in (
        "one",
        "two",
    )
    for name, count in (("embeddings", 1), ("from-tables", 2)):
        assert pa.dataset.dataset(folder / name, format="parquet").count_rows() == count
