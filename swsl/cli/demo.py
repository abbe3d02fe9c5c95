"""`swsl demo`: the whole chain on a bundled photograph."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_model, add_picture
from .engines import open_runner
from .wording import as_typed

if TYPE_CHECKING:
    from ..deploy.protocol import AnyRunner

DEMO_PHOTO = Path(__file__).with_name("chelsea.jpg")


def add_command(commands: Any) -> None:
    command = commands.add_parser(
        "demo", help="the whole chain on a bundled photograph, with timings and a picture"
    )
    add_model(command)
    add_picture(command, "swsl-demo.png")
    command.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from ..deploy.runner import Runner, build_info, decode_image
    from ..evaluation.picture import draw_prediction, save_picture
    from ..image import load_image
    from ..prediction import top_predictions
    from ..system.progress import working
    from ..weights import WeightsError

    note = arguments.runner or arguments.model
    licence = "weights CC-BY-NC 4.0 (non-commercial)"
    try:
        runner = open_runner(arguments)
        if arguments.runner and isinstance(runner, Runner):
            licence = f"weights {runner.metadata['license'] or 'of your own'}"
    except WeightsError as error:
        if arguments.weights:
            raise
        licence = "weights from a fixed seed"
        note = f"{licence}: these predictions mean nothing"
        print(f"The published weights are not here, so these are {note}.\n({as_typed(error, arguments)})\n")
        runner = _seeded_runner(arguments.model)

    def timed(work: Callable[[], Any]) -> tuple[Any, float]:
        with working("computing"):
            work()  # the first call pays for warming up
            start = time.perf_counter()
            result = work()
            return result, (time.perf_counter() - start) * 1e3

    decode = decode_image if isinstance(runner, Runner) else load_image
    pixels, decode_ms = timed(lambda: decode(DEMO_PHOTO))
    batch, preprocess_ms = timed(lambda: runner.preprocess([pixels]))
    logits, forward_ms = timed(lambda: runner.forward(batch))
    predictions = top_predictions(logits, runner.labels, 5)[0]

    photo = load_image(DEMO_PHOTO)
    print(f"{arguments.runner or arguments.model}, {licence}, engine: {runner}")
    if left_out := build_info().get("left_out"):
        print(f"the compiled runner was built without {left_out.splitlines()[0].rstrip(':')}")
    print(f"{DEMO_PHOTO.name}, {photo.width}×{photo.height}: a photograph by Stefan van der Walt, CC0")
    for prediction in predictions:
        print(f"  {prediction.probability:8.2%}  {prediction.label}")
    print(f"decode {decode_ms:.1f} ms, preprocess {preprocess_ms:.1f} ms, forward {forward_ms:.1f} ms")
    save_picture(arguments.output, draw_prediction(photo, runner.spec, predictions, note))
    print(f"picture: {arguments.output}")
    return 0


def _seeded_runner(name: str) -> AnyRunner:
    import tempfile

    import torch

    from ..deploy.runner import Runner, build_info
    from ..system.progress import working
    from ..variants import create_model

    with working(f"making {name}"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, pretrained=False)
    model.get_parameter(
        "fc.weight"
    ).data *= 200  # a fresh classifier's logits are all but equal: five empty bars
    if not build_info()["compiled"]:
        from ..deploy.eager import EagerRunner

        return EagerRunner(model)
    from ..deploy.export import default_suffix, export_model

    with working(f"freezing {name}"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"seeded{default_suffix()}")
        export_model(model, path)
        return Runner(path)
