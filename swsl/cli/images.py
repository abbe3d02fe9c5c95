"""The commands that turn images into answers: classify and embed."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast, get_args

from .arguments import add_cores, add_device, add_model, add_threads, positive
from .engines import open_runner
from .many import add_ray, refuse_without_ray, run_on_ray
from .wording import as_typed

if TYPE_CHECKING:
    from ..bulk.outputs import BulkOutput
    from ..bulk.run_record import Record
    from ..deploy.protocol import AnyRunner
    from ..prediction import Output, Result

_A_HANDFUL = 5  # of images go without a progress line


def add_commands(commands: Any) -> None:
    command = commands.add_parser("classify", help="the most probable classes of images")
    _add_images(command)
    command.add_argument(
        "--top-k", type=positive, default=5, metavar="K", help="classes for each image (default 5)"
    )
    command.add_argument(
        "--format", choices=("table", "json", "csv"),
        help="of what is printed, for - as soon as it is computed; json is one object a line (default table)",
    )  # fmt: skip
    command.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="a .csv, .jsonl or .parquet file to write instead; what made it is in FILE.run.json, or in the Parquet",
    )
    command.add_argument(
        "--outputs", type=_output_names, default=["predictions"], metavar="NAMES",
        help="of predictions, embedding and logits, with commas between them: the columns of a .parquet file, all computed in "
        "one pass (default predictions)",
    )  # fmt: skip
    _add_resume(command)
    command.set_defaults(run=_classify, interrupted="")

    command = commands.add_parser("embed", help="the pooled features of images, 2048 numbers each")
    _add_images(command)
    command.add_argument(
        "-o", "--output", required=True, metavar="FILE",
        help="a .npy file (with FILE.paths.csv beside it) or a .parquet file to write",
    )  # fmt: skip
    _add_resume(command)
    command.set_defaults(run=_embed, interrupted="")


def _output_names(text: str) -> list[Output]:
    from ..prediction import Output

    names = text.split(",")
    known: tuple[Output, ...] = get_args(Output)
    if not set(names) <= set(known):
        raise argparse.ArgumentTypeError(f"expected one or more of {','.join(known)}, got {text!r}")
    return [name for name in known if name in names]


def _add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "images", nargs="+", metavar="PATH|DIR|URL|-",
        help="image files, folders (searched recursively, hidden files and folders left out), URLs, or - for one path or URL a "
        "line on stdin",
    )  # fmt: skip
    add_model(command)
    command.add_argument(
        "--batch-size", type=positive, metavar="N",
        help="images in one forward pass at most (default 16, on a GPU 64)",
    )  # fmt: skip
    command.add_argument(
        "--max-pixels", type=positive, metavar="N",
        help="of an image; one of more is an error, for a small file can hold a great many (default 89478485)",
    )  # fmt: skip
    add_device(command)
    command.add_argument("--exif-orientation", action="store_true", help="turn images as their EXIF tag says")
    add_cores(command)
    add_threads(command)
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16", "tf32", "auto"),
        help="of weights and activations, with the compiled runner (default float32)",
    )  # fmt: skip


def _add_resume(command: argparse.ArgumentParser) -> None:
    add_ray(command)
    command.add_argument(
        "--resume", action="store_true",
        help="go on with the FILE.partial that an interrupted run of the same model and options has left, or with a whole "
        "FILE if there are more images now, behind those that there were",
    )  # fmt: skip


def _open_and_say(arguments: argparse.Namespace) -> AnyRunner:
    options = {
        "device": arguments.device,
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "cores": arguments.cores,
        "threads": arguments.threads,
        "exif_orientation": arguments.exif_orientation or None,
        "max_pixels": arguments.max_pixels,
    }
    runner = open_runner(arguments, **{name: value for name, value in options.items() if value is not None})
    print(f"swsl: {runner!r}", file=sys.stderr)
    return runner


def _classify(arguments: argparse.Namespace) -> int:
    from ..system.files import is_special

    top_k, output, outputs = arguments.top_k, arguments.output, arguments.outputs
    if arguments.ray:
        return run_on_ray(arguments, outputs, top_k)
    refuse_without_ray(arguments)
    suffix = Path(output or "").suffix.lower()
    if outputs != ["predictions"] and suffix != ".parquet":
        raise argparse.ArgumentError(
            None, "--outputs: an embedding and logits are columns of a .parquet file; give one as -o FILE"
        )
    if arguments.resume and not output:
        raise argparse.ArgumentError(None, "--resume: needs the -o FILE of the run to go on with")
    if output and arguments.format and suffix in (".csv", ".jsonl", ".parquet"):
        raise argparse.ArgumentError(None, "--format: the name after -o decides; give one of them")
    target = _target(output) if output else None
    if target is None or is_special(target):
        if target and (arguments.resume or suffix == ".parquet"):
            what = "--resume" if arguments.resume else "-o"
            raise argparse.ArgumentError(None, f"{what}: expected a file, got a pipe or device, {output!r}")
        named = {".csv": "csv", ".jsonl": "json"}.get(suffix)
        return _print(target, named or arguments.format or "table", arguments)
    if suffix not in (".csv", ".jsonl", ".parquet"):
        raise argparse.ArgumentError(
            None, f"-o: expected a name ending in .csv, .jsonl or .parquet, got {output!r}"
        )

    return _write(target, arguments, outputs=outputs, top_k=top_k)


def _embed(arguments: argparse.Namespace) -> int:
    from ..system.files import is_special

    if arguments.ray:
        return run_on_ray(arguments, ["embedding"])
    refuse_without_ray(arguments)
    target, suffix = _target(arguments.output), Path(arguments.output).suffix.lower()
    if suffix not in (".npy", ".parquet"):
        raise argparse.ArgumentError(
            None, f"-o: expected a name ending in .npy or .parquet, got {arguments.output!r}"
        )
    if is_special(target):
        raise argparse.ArgumentError(None, f"-o: expected a file, got a pipe or device, {arguments.output!r}")

    return _write(target, arguments, outputs=["embedding"])


def _bulk_output(
    target: Path, runner: AnyRunner, record: Record, arguments: argparse.Namespace, outputs: list[Output]
) -> BulkOutput:
    """The one whose name the user has given."""
    from ..bulk.outputs import CsvOutput, JsonOutput, NpyOutput
    from ..bulk.parquet import ParquetOutput

    suffix, resume = Path(arguments.output).suffix.lower(), arguments.resume
    if suffix == ".csv":
        return CsvOutput(target, record, resume=resume, top_k=arguments.top_k)
    if suffix == ".jsonl":
        return JsonOutput(target, record, resume=resume)
    widths: dict[Output, int] = {"logits": len(runner.labels)}
    if "embedding" in outputs:
        widths["embedding"] = runner.embed([]).shape[1]
    if suffix == ".npy":
        return NpyOutput(target, record, resume=resume, features=widths["embedding"])
    return ParquetOutput(target, record, resume=resume, outputs=outputs, widths=widths)


def _target(path: str) -> Path:
    """What to write, in the user's own words where these are no link."""
    from ..system.files import resolve_target

    resolved = resolve_target(path)
    return resolved if Path(path).is_symlink() else Path(path)


def _print(target: Path | None, style: str, arguments: argparse.Namespace) -> int:
    """Rows to stdout, or to a device or pipe."""
    from ..bulk.rows import csv_header, csv_row, json_row, table_row
    from ..bulk.sources import find_images
    from ..deploy.feeding import MAX_WAIT
    from ..system.files import open_special

    top_k, failed = arguments.top_k, 0
    rows: dict[str, Callable[[Result], str]] = {
        "table": table_row, "json": json_row, "csv": lambda result: csv_row(result, top_k),
    }  # fmt: skip
    try:
        with contextlib.ExitStack() as stack:
            if target:
                sink = stack.enter_context(io.BufferedWriter(cast(io.RawIOBase, open_special(target))))
                out: TextIO = io.TextIOWrapper(sink, encoding="utf-8", newline="")
            else:
                out = sys.stdout
                if style != "table" and isinstance(out, io.TextIOWrapper):
                    out.reconfigure(encoding="utf-8")  # whatever the terminal's is: other programs read it
            runner = _open_and_say(arguments)
            if style == "csv":
                out.write(csv_header(top_k))
            live = "-" in arguments.images
            stream = runner.stream(
                find_images(arguments.images),
                top_k=top_k,
                max_wait=MAX_WAIT if live else None,
                workers=arguments.workers or 0,
            )
            for result in _reported(stream, arguments, enabled=bool(target) or not out.isatty()):
                failed += result.error is not None
                out.write(rows[style](result))
                if live:
                    out.flush()
            out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if not target or error.filename:
            raise
        raise OSError(f"{target}: cannot be written: {error.strerror}") from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            "only what was printed is kept; a run with -o FILE can go on with --resume"
        ) from error
    return 1 if failed else 0


def _write(target: Path, arguments: argparse.Namespace, **options: Any) -> int:
    """Rows to a file, which no other process writes to meanwhile."""
    from ..bulk.run_record import locked, run_record
    from ..system.progress import say

    output: BulkOutput | None = None
    try:
        with locked(target):
            runner = _open_and_say(arguments)
            record = run_record(runner, **options)
            if not arguments.resume and (partial := target.with_name(target.name + ".partial")).exists():
                say(f"swsl: {partial} of an interrupted run is written over; --resume would go on with it")
            with _bulk_output(target, runner, record, arguments, options["outputs"]) as output:
                failed = _fill(output, runner, arguments, **options)
                nothing_to_do = output.complete
            rows = f"{output.rows:,} row{'s are' if output.rows != 1 else ' is'} in {target}"
            errors = f", {failed:,} of them with an error" if failed else ""
            say(f"swsl: {target} is complete" if nothing_to_do else f"swsl: {rows}{errors}")
            return 1 if failed else 0
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_kept(target, output)) from error


def _kept(target: Path, output: BulkOutput | None) -> str:
    """What an interrupted run leaves."""
    partial = target.with_name(target.name + ".partial")
    if output and output.complete:
        return f"{target} is complete"
    if output and output.rows:
        return f"{output.rows} rows are in {partial}; go on with --resume"
    if partial.exists():
        return f"{partial} is as it was; go on with --resume"
    return "nothing was kept, for there was no row yet"


def _fill(bulk: BulkOutput, runner: AnyRunner, arguments: argparse.Namespace, **options: Any) -> int:
    """Everything into the output, a batch of rows at a time. Returns how many images could not be used."""
    from ..bulk.sources import find_images
    from ..system.interrupts import held_back

    if bulk.rows and not bulk.complete:
        print(f"swsl: {bulk.rows} rows are in {bulk.partial}, going on", file=sys.stderr)
    failed = 0
    waiting: list[Result] = []

    def keep() -> None:
        nonlocal waiting
        with held_back():
            batch, waiting = waiting, []  # not once more if this fails
            bulk.write(batch)

    remaining = bulk.remaining(find_images(arguments.images))
    workers = arguments.workers or 0
    with contextlib.closing(runner.stream(remaining, max_wait=None, workers=workers, **options)) as stream:
        try:
            for result in _reported(stream, arguments, enabled=True, done=bulk.rows):
                failed += result.error is not None
                waiting.append(result)
                if len(waiting) >= runner.batch_size:
                    keep()
        finally:  # interrupted or not, what is computed is kept
            if waiting:
                keep()
    return failed


def _reported(
    results: Iterable[Result], arguments: argparse.Namespace, *, enabled: bool, done: int = 0
) -> Iterator[Result]:
    """The results, with a progress line and a line for each error on stderr."""
    from ..bulk.rows import written_error
    from ..bulk.sources import find_images, why_no_images
    from ..image import ImageError
    from ..system.progress import Progress, say, working

    total = None
    if enabled and sys.stderr.isatty() and "-" not in arguments.images:
        with working("counting the images"):
            total = sum(1 for _ in find_images(arguments.images, report=False)) - done
    with Progress("images", total, enabled=enabled and (total is None or total > _A_HANDFUL)) as progress:
        for result in results:
            if result.error:
                if result.source in arguments.images and os.path.isdir(result.source):
                    with contextlib.suppress(OSError):  # which is its error already
                        result = replace(result, error=ImageError(why_no_images(result.source)))
                say(f"swsl: error: {as_typed(written_error(result.error), arguments)}")
            progress.advance(errors=result.error is not None)
            yield result
