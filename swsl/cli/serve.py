"""The command that answers over HTTP: serve."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .arguments import add_cores, add_device, positive

if TYPE_CHECKING:
    from ..deploy.protocol import AnyRunner

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def add_command(commands: Any) -> None:
    command = commands.add_parser("serve", help="a frozen module over HTTP")
    command.add_argument("module", metavar="FILE", help="a file that `swsl export` wrote")
    command.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="to listen on (default 127.0.0.1: this machine alone; 0.0.0.0: whoever reaches it, and there is no password)",
    )  # fmt: skip
    command.add_argument(
        "--port", type=_port, default=8000, metavar="N", help="default 8000; 0: any that is free"
    )
    add_device(command)
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16", "tf32", "auto"),
        help="of weights and activations, with the compiled runner (default float32)",
    )  # fmt: skip
    add_cores(command)
    command.add_argument(
        "--threads", type=positive, metavar="N",
        help="that compute the forward pass on a CPU, at most --cores (default: as many)",
    )  # fmt: skip
    command.add_argument(
        "--max-batch", type=positive, metavar="N",
        help="images in one forward pass at most (default 16, on a GPU 64)",
    )  # fmt: skip
    command.add_argument(
        "--max-wait-ms", type=_milliseconds, default=2.0, metavar="MS",
        help="without a new image, after which those that are there are computed (default 2)",
    )  # fmt: skip
    command.add_argument(
        "--max-queue", type=positive, default=256, metavar="N",
        help="images that wait for their turn; whoever sends more is told to come again (default 256)",
    )  # fmt: skip
    command.add_argument(
        "--max-bytes", type=positive, default=32 << 20, metavar="N", help=f"of a request (default {32 << 20})"
    )
    command.add_argument(
        "--max-pixels", type=positive, metavar="N",
        help="of an image; one of more is an error, for a small file can hold a great many (default 89478485)",
    )  # fmt: skip
    command.add_argument("--exif-orientation", action="store_true", help="turn images as their EXIF tag says")
    command.set_defaults(run=_serve, interrupted="")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 65535, got {text!r}")
    return int(text)


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 3_600_000:
        raise argparse.ArgumentTypeError(f"expected milliseconds, 0 or more, got {text!r}")
    return value


def _serve(arguments: argparse.Namespace) -> int:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        names = ", ".join(name.replace("_", "-") for name in missing)
        raise ImportError(f"serve needs more, {names}: pip install 'swsl[serve]'")
    from ..serving.running import bound_socket, run_server
    from ..serving.service import Service

    sock = bound_socket(arguments.host, arguments.port)  # before the model is loaded
    with sock:
        service = Service(
            arguments.module,
            _runner(arguments),
            max_batch=arguments.max_batch or 0,
            max_wait=arguments.max_wait_ms / 1000,
            max_queue=arguments.max_queue,
        )
        run_server(service, sock, max_bytes=arguments.max_bytes)
    return 0


def _runner(arguments: argparse.Namespace) -> AnyRunner:
    from ..deploy.runner import Runner
    from ..system.progress import working

    options = {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "cores": arguments.cores,
        "threads": arguments.threads,
        "batch_size": arguments.max_batch,
        "max_pixels": arguments.max_pixels,
        "exif_orientation": arguments.exif_orientation,
    }
    with working(f"loading {arguments.module}"):
        return Runner(
            arguments.module, **{name: value for name, value in options.items() if value is not None}
        )
