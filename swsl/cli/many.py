"""Runs on many machines: classify and embed with --ray."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system.progress import say
from .arguments import positive, refuse_two_models
from .engines import cached_export

if TYPE_CHECKING:
    from ..prediction import Output

_NOT_WITH_RAY = {
    "format": "rows go into Parquet files",
    "workers": "each actor has as many as its CPUs",
    "threads": "each actor has as many as its CPUs",
    "cores": "give --cpus-per-actor",
}
_CONNECT_SECONDS = 10.0
_WITH_RAY_ALONE = ("cpus_per_actor", "image_column", "id_column")


def add_ray(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("on many machines, by Ray Data (pip install 'swsl[ray]')")
    group.add_argument(
        "--ray", metavar="ADDRESS",
        help="of the cluster; auto: the one that this machine belongs to, or else one of its own; local: always that. Then -o is a "
        "folder of Parquet parts, which may be s3://… as the inputs may; .tar shards and .parquet files are inputs too",
    )  # fmt: skip
    group.add_argument(
        "--cpus-per-actor", type=positive, metavar="N",
        help="cores of each runner (default: all of a node's; on GPUs, of which each has a runner, its share of them)",
    )  # fmt: skip
    group.add_argument(
        "--image-column",
        metavar="NAME",
        help="of .parquet files: the bytes (default: the only column of bytes)",
    )
    group.add_argument(
        "--id-column", metavar="NAME",
        help="of .parquet files: what names an image (default: FILE/NUMBER, by the row's number)",
    )  # fmt: skip


def refuse_without_ray(arguments: argparse.Namespace) -> None:
    for name in _WITH_RAY_ALONE:
        if getattr(arguments, name) is not None:
            raise argparse.ArgumentError(None, f"--{name.replace('_', '-')}: needs --ray")


def run_on_ray(arguments: argparse.Namespace, outputs: Sequence[Output], top_k: int = 5) -> int:
    _check(arguments)
    _import_ray()
    from ..bulk.ray import Options, Shipped
    from ..bulk.ray_inputs import find_inputs
    from ..bulk.ray_job import check_reach, run
    from ..bulk.ray_parts import Parts
    from ..image import MAX_PIXELS
    from ..system.progress import working

    with working("listing the images"):
        inputs = find_inputs(
            arguments.images, image_column=arguments.image_column, id_column=arguments.id_column
        )
    module = arguments.runner or cached_export(arguments.model, arguments.weights)
    options = Options(
        tuple(outputs),
        top_k,
        arguments.dtype or "float32",
        arguments.batch_size or 0,
        arguments.exif_orientation,
        arguments.max_pixels or MAX_PIXELS,
    )
    parts: Parts | None = None
    try:
        shipped = Shipped(module, options)
        parts = Parts(arguments.output, shipped.record)
        with parts.only_writer():
            parts.open(arguments.resume)
            with _connected(arguments.ray):
                shipped.send()
                check_reach(inputs, parts)
                run(inputs, parts, shipped, cpus_per_actor=arguments.cpus_per_actor, device=arguments.device)
    except KeyboardInterrupt as error:
        count = parts.count() if parts else 0
        raise KeyboardInterrupt(
            f"{count:,} parts are in {arguments.output}; go on with --resume"
            if count
            else "nothing was kept, for there was no part yet"
        ) from error
    rows = f"{len(parts.done):,} row{'s are' if len(parts.done) != 1 else ' is'} in {arguments.output}"
    say(f"swsl: {rows}" + (f", {parts.failed:,} of them with an error" if parts.failed else ""))
    return 1 if parts.failed else 0


def _check(arguments: argparse.Namespace) -> None:
    """That the options make sense together and the output is a folder's name."""
    refuse_two_models(arguments)
    for name, reason in _NOT_WITH_RAY.items():
        if getattr(arguments, name, None) is not None:
            raise argparse.ArgumentError(None, f"--{name}: not with --ray; {reason}")
    if arguments.ray.startswith("ray://"):
        raise argparse.ArgumentError(
            None,
            "--ray: Ray's client is not supported; run the command on a machine of the cluster, with --ray auto",
        )
    if "-" in arguments.images:
        raise argparse.ArgumentError(None, "-: not with --ray; name files, folders or globs")
    if arguments.dtype == "auto":
        raise argparse.ArgumentError(None, "--dtype: not auto with --ray, for nodes could choose differently")
    if arguments.device.startswith("cuda:"):
        raise argparse.ArgumentError(
            None, "--device: with --ray, expected cpu, cuda or auto; Ray hands out the GPUs"
        )
    suffix = Path(arguments.output or "").suffix.lower()
    if not arguments.output or suffix in (".csv", ".jsonl", ".npy", ".parquet"):
        raise argparse.ArgumentError(
            None, f"-o: with --ray, expected the name of a folder, got {arguments.output!r}"
        )
    if Path(arguments.output).is_file():
        raise argparse.ArgumentError(
            None, f"-o: with --ray, expected a folder, got a file, {arguments.output!r}"
        )


def _import_ray() -> Any:
    try:
        import ray.data
    except ImportError as error:
        raise ImportError("--ray: Ray Data is not there: pip install 'swsl[ray]'") from error
    return ray


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """The block has Ray, whose own handlers of signals are put away: the command has some."""
    ray = _import_ray()
    from ..bulk.ray import KEPT_WORKERS

    if ray.is_initialized():
        yield
        return
    _refuse_absent(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    kept = {"num_workers_soft_limit": max(KEPT_WORKERS, os.cpu_count() or 1)}
    alone = {"include_dashboard": False, "_system_config": kept, **quiet}
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    here = os.getcwd()
    try:
        joined = address != "local"
        os.chdir(
            os.sep
        )  # Ray's processes import from where it is called: a checkout's sources, whatever lies there
        try:
            ray.init(address, **(quiet if joined else alone))
        except ConnectionError as error:
            if address != "auto":
                raise ConnectionError(f"--ray: no cluster at {address}: {error}") from error
            joined = False
            ray.init("local", **alone)
        finally:
            os.chdir(here)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        nodes = sum(node["Alive"] for node in ray.nodes())
        cpus = int(ray.cluster_resources().get("CPU", 0))
        where = f"the cluster at {ray.get_runtime_context().gcs_address}" if joined else "this machine alone"
        say(f"swsl: Ray on {where}: {nodes} node{'s' * (nodes != 1)}, {cpus} CPUs")
        yield
    finally:
        ray.shutdown()


def _refuse_absent(address: str) -> None:
    """Ray itself would ask for two minutes, whatever is pressed."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            raise ConnectionError(
                f"--ray: no cluster at {address}: {error}; ray start --head begins one"
            ) from error
