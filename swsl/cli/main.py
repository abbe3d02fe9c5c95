"""The `swsl` command: arguments in, printed answers out."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from ..system.files import is_stdout, resolve_target
from ..system.progress import say
from ..system.torchrun import handed_over, is_first
from ..version import __version__
from . import demo, export, images, serve, training
from .arguments import positive
from .completion import SHELLS, PrintCompletion
from .wording import as_typed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0, or 1 if anything failed (an image that cannot be read among them, but for those that
    --max-corrupt allows), or as shells do 128 and the number of the signal that stopped it: Ctrl-C or SIGTERM. Wrong usage exits
    with 2, as argparse does.

    A command that keeps something when it is stopped raises KeyboardInterrupt with the words for it and for how to go on.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text in any encoding
    parser = build_parser()
    arguments = parser.parse_args(argv)
    warnings.showwarning = lambda message, *_: (
        say(f"swsl: warning: {as_typed(message, arguments)}") if is_first() else None
    )
    with _stoppable() as signals:
        try:
            return _run(arguments)
        except argparse.ArgumentError as error:  # arguments that are wrong together
            command: argparse.ArgumentParser = arguments.parser
            command.error(as_typed(error, arguments))
        except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
            _leave_stdout()
            return 141
        except (KeyboardInterrupt, RuntimeError, ValueError, OSError, ImportError) as error:
            what = " ".join(as_typed(error, arguments).split())
            try:
                sys.stdout.flush()
            except OSError:
                _leave_stdout()
            # What is stopped may end in another error: of processes that were stopped too, say.
            if signals or isinstance(error, KeyboardInterrupt):
                kept = what if isinstance(error, KeyboardInterrupt) else ""
                kept = kept or arguments.interrupted
                if is_first():
                    say(f"swsl: interrupted{kept and ': '}{kept}")
                return 128 + (signals[0] if signals else signal.SIGINT)
            if not handed_over(f"swsl: error: {what}"):
                say(f"swsl: error: {what}")
            return 1


def _run(arguments: argparse.Namespace) -> int:
    """The command, after a look at the outputs: an hour's work is not to end in a name that cannot be written."""
    from ..evaluation.picture import picture_format

    paths = [getattr(arguments, name) for name in arguments.writes + arguments.pictures]
    targets = [resolve_target(path) for path in paths if path not in (None, "-")]
    for name in arguments.pictures:
        try:
            if path := getattr(arguments, name):
                picture_format(path)
        except ValueError as error:
            raise argparse.ArgumentError(None, f"{name}: {error}") from error
    if any(map(is_stdout, targets)):  # which then is the output's alone
        with contextlib.redirect_stdout(sys.stderr):
            return arguments.run(arguments)
    code = arguments.run(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:  # a full device: Python would only mention it when it ends
        _leave_stdout()
        raise OSError(f"stdout: cannot be written: {error.strerror}") from error
    return code


@contextlib.contextmanager
def _stoppable() -> Iterator[list[int]]:
    """SIGTERM raises KeyboardInterrupt as Ctrl-C does, and a second of either ends the process at once. Yields a list, which
    gets the signal that came."""
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, _: object) -> None:
        came.append(number)
        for known in before:
            signal.signal(known, signal.SIG_DFL)
        # DataLoader's handler raises where a worker was stopped too: amid our last words.
        if hasattr(signal, "SIGCHLD"):
            before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for each, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(each) == usual:  # one that is ignored, under nohup say, stays so
                before[each] = signal.signal(each, stop)
    try:
        yield came
    finally:
        for each, handler in before.items():
            if handler is not None:  # one that C has set, and Python cannot set again
                signal.signal(each, handler)


def _leave_stdout() -> None:
    """What is still to be printed would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if handed_over(f"{self.format_usage()}{self.prog}: error: {message}"):
            self.exit(2)
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="swsl",
        description="SWSL ResNeXt ImageNet models. The published weights are CC-BY-NC 4.0: non-commercial use only.",
        epilog="Exit status: 0; 1 if anything failed, an image that cannot be read among them (finetune and probe leave out as many "
        "as --max-corrupt allows); 2 for wrong usage; 128 and the signal's number if stopped.",
    )
    parser.add_argument("--version", action="version", version=f"swsl {__version__}")
    parser.add_argument(
        "--print-completion", action=PrintCompletion, choices=SHELLS,
        help="print a script with which this shell completes swsl's commands, options and files; needs shtab",
    )  # fmt: skip
    # `writes` are the arguments that name a file to write, `pictures` those that name a picture.
    parser.set_defaults(writes=(), pictures=(), interrupted="nothing was kept; run it again")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="the four variants and every published fact about them")
    command.set_defaults(run=_list)

    export.add_export(commands)

    command = commands.add_parser("verify", help="repeat the golden check of a frozen module")
    command.add_argument("module", metavar="FILE", help="a file that `swsl export` wrote")
    command.set_defaults(run=_verify)

    command = commands.add_parser("profile", help="where the time of a frozen module's forward pass goes")
    command.add_argument("module", metavar="FILE", help="a file that `swsl export` wrote")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "auto"), default="float32", help="default float32"
    )
    command.add_argument("--batch-size", type=positive, default=1, metavar="N", help="default 1")
    command.add_argument("--threads", type=positive, default=0, metavar="N", help="default: as torch")
    command.add_argument(
        "-o", "--output", metavar="FILE", help="also draw a roofline picture, a .png or .jpg"
    )
    command.set_defaults(run=_profile, pictures=("output",))

    images.add_commands(commands)
    demo.add_command(commands)
    serve.add_command(commands)
    training.add_commands(commands)
    for command in commands.choices.values():
        command.set_defaults(parser=command)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    from ..variants import VARIANTS

    variants = list(VARIANTS.values())
    training = variants[0].training
    rows = [("", [variant.name.removeprefix("swsl_resnext") for variant in variants])]
    rows += [
        ("blocks in the stages", [",".join(map(str, v.layers)) for v in variants]),
        ("groups × width", [f"{v.groups} × {v.width_per_group}" for v in variants]),
        ("parameters", [f"{v.parameters:,}" for v in variants]),
        ("FLOPs as published", [f"{v.published_flops / 1e9:.2f} G" for v in variants]),
        ("MACs at 224×224", [f"{v.macs / 1e9:.2f} G" for v in variants]),
        ("file, bytes", [f"{v.file_size:,}" for v in variants]),
        ("SHA-256 begins", [v.sha256_prefix for v in variants]),
        ("ImageNet top-1, %", [f"{v.top1:.2f}" for v in variants]),
        ("ImageNet top-5, %", [f"{v.top5:.2f}" for v in variants]),
    ]
    names = ("again, timm's", "ReaL labels", "ImageNet-V2", "ImageNet-A", "ImageNet-R", "Sketch")
    for column, name in enumerate(names):
        rows.append((f"{name} top-1, %", [str(v.timm_top1[column]) for v in variants]))
    for name, cells in rows:
        print(f"{name:<24}" + "".join(f"{cell:>14}" for cell in cells))
    print()
    for variant in variants:
        print(f"{variant.name}\n  {variant.url}")
        if variant.note:
            print(f"  note: {variant.note}")
    spec = variants[0].preprocess
    print(
        f"\ninput     {spec.input_size[0]}×{spec.input_size[1]}, crop_pct {spec.crop_pct}, {spec.interpolation}, "
        f"mean {spec.mean}, std {spec.std}"
        f"\ntraining  {' and '.join(training.data)}; {', '.join(training.techniques)}; learning rate "
        f"{training.learning_rate}, {training.epochs} epochs, batch {training.batch_size}, weight decay "
        f"{training.weight_decay:g}, {training.gpus} GPUs"
        f"\nlicence   weights {variants[0].license}: non-commercial use only; code Apache-2.0"
    )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from ..deploy.export import verify
    from ..formats.metadata import has_script, open_frozen
    from ..system.progress import working

    with working(f"verifying {arguments.module}"):
        error = verify(arguments.module)
    script = has_script(open_frozen(arguments.module)[1])
    way = "" if script else ", by its network table; torch.export's program in it was not run"
    print(f"{arguments.module}: relative error {error:.1e} on the CPU{way}")
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from ..evaluation.picture import save_picture
    from ..evaluation.profile import profile, table
    from ..evaluation.roofline import draw_roofline
    from ..system.progress import working

    with working(f"profiling {arguments.module}"):
        found = profile(
            arguments.module, dtype=arguments.dtype, threads=arguments.threads, batch=arguments.batch_size
        )
    print(found.note)
    print(table(found))
    if arguments.output:
        save_picture(arguments.output, draw_roofline(found))
    return 0
