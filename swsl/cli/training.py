"""The commands around training: `swsl finetune`, `validate`, `probe` and `explain`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_cores, add_device, add_model, add_picture, positive, refuse_two_models, take_cores

if TYPE_CHECKING:
    from ..deploy.protocol import AnyRunner
    from ..training.recipe import Architecture


def add_commands(commands: Any) -> None:
    """Add them to the parser's subparsers."""
    _add_finetune(commands)
    _add_validate(commands)
    _add_probe(commands)
    _add_explain(commands)


def _add_finetune(commands: Any) -> None:
    command = commands.add_parser(
        "finetune",
        help="train on your own folders of images",
        description="Fine-tune a variant, or train a model from scratch, on DIR/train/CLASS/* and DIR/val/CLASS/*. For more "
        "than one process: torchrun --nproc-per-node N -m swsl finetune DIR …",
    )
    command.add_argument("data", type=Path, metavar="DIR")
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("run"),
        metavar="DIR",
        help="for the run's files (default run)",
    )
    command.add_argument(
        "--resume", action="store_true",
        help="go on with the run in the output folder, by its own options where none are given here",
    )  # fmt: skip

    group = command.add_argument_group("model")
    add_model(group, runner=False)
    group.add_argument("--scratch", action="store_true", help="start from no weights")
    group.add_argument(
        "--architecture", type=_architecture, metavar="L1,L2,L3,L4:GxW",
        help="instead of a variant: blocks of the stages, groups × width, such as 1,1,1,1:4x8",
    )  # fmt: skip
    group.add_argument(
        "--input-size",
        type=positive,
        metavar="PIXELS",
        help="side of the input (default 224, or best.pth's own)",
    )
    group.add_argument("--freeze-backbone", action="store_true", help="train the classifier only")

    group = command.add_argument_group("recipe")
    group.add_argument(
        "--recipe", choices=("small", "swsl"),
        help="small: for small data sets (default); swsl: as the published weights were trained, the learning rate "
        "scaled with the batch",
    )  # fmt: skip
    group.add_argument("--epochs", type=positive, metavar="N", help="default: the recipe's, 10 or 30")
    group.add_argument(
        "--lr",
        type=float,
        metavar="X",
        dest="learning_rate",
        help="default: the recipe's, scaled with the batch",
    )
    group.add_argument("--weight-decay", type=float, metavar="X", help="default 1e-4")
    group.add_argument("--label-smoothing", type=float, metavar="X", help="default 0.1 (small) or 0 (swsl)")
    group.add_argument("--warmup-epochs", type=float, metavar="X", help="default 1")
    group.add_argument(
        "--no-norm-decay",
        action="store_false",
        dest="norm_decay",
        help="no weight decay on BatchNorm and biases",
    )
    group.add_argument(
        "--layer-decay", type=float, metavar="X",
        help="each stage's learning rate is X times that of the stage above (default 1)",
    )  # fmt: skip
    group.add_argument("--class-weights", action="store_true", help="weigh rare classes more")
    group.add_argument(
        "--ema", type=float, metavar="DECAY", help="validate and keep averaged weights, 0.999 say"
    )
    group.add_argument("--clip-norm", type=float, metavar="X", help="clip the gradient's norm")
    group.add_argument("--seed", type=int, metavar="N", help="of everything random (default 0)")

    group = command.add_argument_group("augmentation")
    group.add_argument(
        "--crop-scale",
        type=float,
        metavar="X",
        help="least share of the image in a crop (default 0.35)",
    )
    group.add_argument("--no-flip", action="store_false", dest="flip", help="do not mirror images")
    group.add_argument("--rand-augment", type=int, metavar="M", help="RandAugment's magnitude, 9 say (default 0: none)")  # fmt: skip
    group.add_argument("--mixup", type=float, metavar="ALPHA", help="default 0: none")
    group.add_argument("--cutmix", type=float, metavar="ALPHA", help="default 0: none")

    group = command.add_argument_group("distillation (Hinton et al., arXiv 1503.02531)")
    group.add_argument(
        "--teacher", metavar="FILE",
        help="learn this model's answers too: a frozen module, or a run's checkpoint, of the same classes and input size",
    )  # fmt: skip
    group.add_argument(
        "--distill-weight", type=float, metavar="W",
        help="the teacher's share in the loss, 0 to 1 (default 0.5, ours: as much as the labels)",
    )  # fmt: skip
    group.add_argument(
        "--temperature", type=float, metavar="T",
        help="softens teacher and student (default 4, ours: the paper tries 1 to 20)",
    )  # fmt: skip

    group = command.add_argument_group("computation")
    group.add_argument("--batch-size", type=positive, metavar="N", help="of one process (default 32)")
    group.add_argument("--accumulate", type=positive, metavar="N", help="batches to a step (default 1)")
    group.add_argument(
        "--amp", choices=("auto", "off", "bf16", "fp16"),
        help="mixed precision (default auto: bf16 on a GPU, off on a CPU)",
    )  # fmt: skip
    group.add_argument("--compile", action="store_true", help="torch.compile")
    group.add_argument("--sync-bn", action="store_true", help="BatchNorm over all processes (GPUs)")
    group.add_argument("--workers", type=int, metavar="N", help="that load images, of one process (default 2)")  # fmt: skip
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default auto")
    group.add_argument(
        "--checkpoint-steps", type=int, metavar="N",
        help="save for --resume every N steps too (default: after each epoch)",
    )  # fmt: skip
    _add_max_corrupt(group)
    # What is not given is decided by TrainOptions, or by the run that is resumed.
    for action in command._actions:
        if action.dest not in ("output", "resume"):
            action.default = argparse.SUPPRESS
    command.set_defaults(run=_finetune, interrupted="")  # it says itself what is kept


def _finetune(arguments: argparse.Namespace) -> int:
    from ..training.resuming import given_options
    from ..training.train import finetune

    finetune(given_options(vars(arguments)), report=lambda text: print(text, flush=True))
    return 0


def _architecture(text: str) -> Architecture:
    from ..training.recipe import Architecture

    try:
        stages, _, width = text.partition(":")
        groups, _, per_group = width.partition("x")
        first, second, third, fourth = map(positive, stages.split(","))
        return Architecture((first, second, third, fourth), positive(groups), positive(per_group))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"expected something like 1,1,1,1:4x8, got {text!r} ({error})"
        ) from error


def _add_validate(commands: Any) -> None:
    command = commands.add_parser(
        "validate",
        help="accuracy on labelled images, with confidence intervals",
        description="Top-1, top-5, loss and calibration on DATA: a folder with a folder for each class (named by label, "
        "WordNet id or number), a flat folder with --truth, or a CSV file with the columns path and label.",
    )
    command.add_argument("data", metavar="DATA")
    _add_engine(command)
    command.add_argument("--truth", metavar="FILE", help="the classes of a flat folder's images")
    command.add_argument(
        "--real", metavar="FILE", help="ReaL's real.json: measure against these labels as well"
    )
    command.add_argument(
        "--present-classes", action="store_true",
        help="let the model choose among the data's classes only, as ImageNet-A and ImageNet-R are measured",
    )  # fmt: skip
    command.add_argument("--input-size", type=positive, metavar="PIXELS", help="instead of the model's own")
    command.add_argument("--crop-pct", type=float, metavar="X", help="instead of the model's own")
    command.add_argument("--per-class", action="store_true", help="print every class's accuracy too")
    command.add_argument("--json", metavar="FILE", help="write every figure there (- for stdout alone)")
    command.add_argument(
        "--reliability", metavar="FILE", help="draw confidence against accuracy, a .png or .jpg"
    )
    command.add_argument(
        "--predictions", metavar="FILE.csv",
        help="write each image's path, true and predicted class, the latter's probability, and the truth's rank",
    )  # fmt: skip
    command.set_defaults(run=_validate, writes=("json", "predictions"), pictures=("reliability",))


def _validate(arguments: argparse.Namespace) -> int:
    from ..evaluation.answers import write_predictions
    from ..evaluation.charts import draw_calibration
    from ..evaluation.evaluate import evaluate
    from ..evaluation.labelled import read_labelled
    from ..evaluation.picture import save_picture
    from ..system.files import open_output
    from ..system.progress import working

    engine = _engine(arguments)
    with working(f"listing {arguments.data}"):
        data = read_labelled(arguments.data, engine.labels, truth=arguments.truth, real=arguments.real)
    only = sorted(set(data.targets)) if arguments.present_classes else None
    result = evaluate(engine, data, only_classes=only, progress=True)
    tally = result.tally
    if arguments.json != "-":
        print(
            f"{arguments.data}: {tally.images:,} images, {len(set(data.targets)):,} classes; engine: {engine}"
        )
        print(f"  top-1  {tally.top1}\n  top-5  {tally.top5}")
        if result.real_top1:
            print(f"  ReaL top-1  {result.real_top1}\n  ReaL top-5  {result.real_top5}")
        print(f"  loss   {tally.loss:.4f}\n  ECE    {tally.ece:.2%}")
        if arguments.per_class:
            for label, share in zip(result.labels, tally.per_class, strict=True):
                if share.total:
                    print(
                        f"  {share.value:7.2%}  [{share.low:7.2%}, {share.high:7.2%}]  {share.total:6,}  {label}"
                    )
    if arguments.json:
        content = {
            "data": str(arguments.data), "engine": str(engine), "weights": arguments.weights,
            "only_classes": None if only is None else len(only), **result.to_dict(),
        }  # fmt: skip
        with open_output(None if arguments.json == "-" else arguments.json) as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
            print(file=file)
    if arguments.predictions:
        with open_output(arguments.predictions) as file:
            write_predictions(file, result.answers, result.labels)
    if arguments.reliability:
        save_picture(arguments.reliability, draw_calibration(tally.calibration, tally.ece))
    if result.failed:
        print(f"swsl: {len(result.failed)} images could not be read and are in no figure", file=sys.stderr)
    return 1 if result.failed else 0


def _add_probe(commands: Any) -> None:
    command = commands.add_parser(
        "probe",
        help="how well the features separate your classes, without training the model",
        description="Classify DIR/val/CLASS/* by features of DIR/train/CLASS/*: nearest neighbours and a linear classifier.",
    )
    command.add_argument("data", metavar="DIR")
    _add_engine(command)
    command.add_argument("--neighbours", type=positive, default=20, metavar="K", help="default 20")
    command.add_argument("--json", metavar="FILE", help="write the figures there")
    _add_max_corrupt(command)
    command.set_defaults(run=_probe, input_size=None, crop_pct=None, writes=("json",))


def _probe(arguments: argparse.Namespace) -> int:
    from ..evaluation.probe import probe
    from ..system.files import open_output

    result = probe(
        _engine(arguments), arguments.data, neighbours=arguments.neighbours, max_corrupt=arguments.max_corrupt,
        progress=True,
    )  # fmt: skip
    print(f"{arguments.neighbours} nearest neighbours  {result.neighbours}")
    print(f"linear classifier (C = {result.strength:g})  {result.linear}")
    if arguments.json:
        with open_output(arguments.json) as file:
            json.dump(result.to_dict(), file, indent=1, ensure_ascii=False)
            print(file=file)
    return 0


def _add_max_corrupt(command: argparse._ActionsContainer) -> None:
    command.add_argument(
        "--max-corrupt", type=float, default=0.05, metavar="SHARE",
        help="leave out images that cannot be read, and stop when they are more of all than this (default 0.05)",
    )  # fmt: skip


def _add_explain(commands: Any) -> None:
    command = commands.add_parser("explain", help="a picture of where the model looks (Grad-CAM)")
    command.add_argument("image", metavar="PATH|URL")
    add_model(command, runner=False)
    command.add_argument("--top-k", type=positive, default=3, metavar="K", help="classes shown (default 3)")
    add_device(command)
    add_picture(command, "swsl-explain.png")
    command.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from ..deploy.eager import EagerRunner
    from ..evaluation.explain import explain
    from ..evaluation.picture import save_picture
    from ..system.progress import working
    from ..training.checkpoint import load_model

    loaded = load_model(arguments.model, arguments.weights)
    runner = EagerRunner(loaded.model, spec=loaded.spec, labels=loaded.labels, device=arguments.device)
    with working(f"explaining {arguments.image}"):
        picture, predictions = explain(runner, arguments.image, arguments.top_k)
    for prediction in predictions:
        print(f"  {prediction.probability:8.2%}  {prediction.label}")
    save_picture(arguments.output, picture)
    print(f"picture: {arguments.output}")
    places = [-(-side // 32) for side in runner.spec.input_size]  # of the last stage, whose stride is 32
    if min(places) < 3:
        print(
            f"swsl: the model's input of {'×'.join(map(str, runner.spec.input_size))} leaves {places[0]}×{places[1]} places to "
            "point at: too few to tell where it looks",
            file=sys.stderr,
        )
    return 0


def _add_engine(command: argparse.ArgumentParser) -> None:
    sources = add_model(command)
    sources.add_argument("--frozen", metavar="FILE", help="likewise in PyTorch: --runner is the compiled one")
    command.add_argument("--batch-size", type=positive, default=16, metavar="N", help="default 16")
    add_device(command)
    add_cores(command)


def _engine(arguments: argparse.Namespace) -> AnyRunner:
    """What --model, --weights, --frozen, --runner, --input-size and --crop-pct ask for together."""
    from ..system.progress import working

    refuse_two_models(arguments)
    options = {"device": arguments.device, "batch_size": arguments.batch_size}
    if arguments.runner:
        from ..deploy.runner import Runner

        if arguments.input_size or arguments.crop_pct is not None:
            raise argparse.ArgumentError(
                None,
                "--runner: the frozen module's own preprocessing is what it runs; use --frozen with --input-size or --crop-pct",
            )
        with working(f"loading {arguments.runner}"):
            return Runner(arguments.runner, cores=arguments.cores or 0, **options)
    from dataclasses import replace

    take_cores(arguments.cores)
    changes: dict[str, Any] = {}
    if arguments.input_size:
        changes["input_size"] = (arguments.input_size, arguments.input_size)
    if arguments.crop_pct is not None:
        changes["crop_pct"] = arguments.crop_pct
    if arguments.frozen:
        from ..deploy.frozen import FrozenRunner

        with working(f"loading {arguments.frozen}"):
            frozen = FrozenRunner(arguments.frozen, **options)
        frozen.spec = replace(frozen.spec, **changes)
        return frozen
    from ..deploy.eager import EagerRunner
    from ..training.checkpoint import load_model

    loaded = load_model(arguments.model, arguments.weights)
    return EagerRunner(loaded.model, spec=replace(loaded.spec, **changes), labels=loaded.labels, **options)
