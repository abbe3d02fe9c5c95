"""Runs of every kind of bulk output, and what they leave: test files share them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from swsl.bulk.outputs import BulkOutput, CsvOutput, JsonOutput, NpyOutput
from swsl.bulk.parquet import ParquetOutput
from swsl.bulk.run_record import Record
from swsl.image import ImageError
from swsl.prediction import Output, Prediction, Result

FEATURES = 3
INPUTS = [f'folder/{i}, "quoted" ü{".jpg" if i % 2 else chr(10) + ".png"}' for i in range(40)]


def result_of(path: str) -> Result:
    number = INPUTS.index(path)
    if number % 7 == 3:
        return Result(path, error=ImageError(f"{path}: truncated"))
    row = torch.tensor([number, number / 3, -1.5])
    predictions = [Prediction(f"class, {number}", number, 0.75), Prediction("other", 7, 1 / 3)]
    return Result(path, predictions, embedding=row, logits=row[:2] + 1)


RECORD: Record = {"model": "0123456789abcdef" * 4, "dtype": "float32", "outputs": "predictions", "top_k": 2}


def parquet(outputs: list[Output], target: Path, resume: bool, record: Record = RECORD) -> ParquetOutput:
    widths: dict[Output, int] = {"embedding": FEATURES, "logits": 2}
    return ParquetOutput(target, record, resume=resume, outputs=outputs, widths=widths)


OUTPUTS: dict[str, Callable[..., BulkOutput]] = {
    "out.csv": lambda target, resume, record=RECORD: CsvOutput(target, record, resume=resume, top_k=2),
    "out.jsonl": lambda target, resume, record=RECORD: JsonOutput(target, record, resume=resume),
    "out.npy": lambda target, resume, record=RECORD: NpyOutput(
        target, record, resume=resume, features=FEATURES
    ),
    "predictions.parquet": lambda *arguments: parquet(["predictions"], *arguments),
    "embeddings.parquet": lambda *arguments: parquet(["embedding"], *arguments),
    "everything.parquet": lambda *arguments: parquet(["predictions", "embedding", "logits"], *arguments),
}


class Killed(BaseException):
    """Stands for a process that is gone: nothing after it is written."""


def run(
    name: str, folder: Path, *, resume: bool = False, stop_after: int | None = None, batch: int = 4
) -> None:
    with OUTPUTS[name](folder / name, resume) as output:
        inputs = list(output.remaining(INPUTS))
        assert len(inputs) == len(INPUTS) - output.rows
        for start in range(0, len(inputs), batch):
            if stop_after is not None and start >= stop_after:
                raise Killed
            output.write([result_of(path) for path in inputs[start : start + batch]])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def fill(
    folder: Path, name: str, inputs: list[str], make: Callable[[str], Result] = result_of, stop_at: int = 1000
) -> bool:
    """A run of these inputs with --resume. Returns whether it found all of them there."""
    with OUTPUTS[name](folder / name, True) as output:
        complete = output.complete
        for path in output.remaining(inputs):
            complete = False
            output.write([make(path)])
            if output.rows == stop_at:
                raise Killed
    return complete


def rows_in(folder: Path, name: str) -> object:
    files = (folder / name, folder / f"{name}.paths.csv")
    return [pq.read_table(f) if f.suffix == ".parquet" else f.read_bytes() for f in files if f.exists()]


def paths_and_errors(file: Path) -> tuple[list[str], list[str | None]]:
    """As other programs read them, which take an output for UTF-8."""
    if file.suffix == ".parquet":
        table = pq.read_table(pa.BufferReader(file.read_bytes())).to_pydict()
        return table["path"], table["error"]
    if file.suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    else:
        names = file if file.suffix == ".csv" else file.with_name(f"{file.name}.paths.csv")
        with open(names, encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
    return [row["path"] for row in rows], [row.get("error") for row in rows]
