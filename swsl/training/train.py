"""Fine-tuning, and training from scratch: plain PyTorch on one process, or on those that torchrun starts.

    swsl.training.train.finetune(TrainOptions(data=Path("photos"), output=Path("run")))

A run's folder gets ``best.pth`` (the model with the best validation accuracy, see swsl/training/checkpoint.py), ``last.pth`` (the
latest, with all that resuming needs), ``metrics.csv`` and ``curves.png``, and of the best ``predictions.csv``, ``confusion.png`` and
``mistakes.png``.

Everything random is a function of the seed and the position (epoch, step, image), never of a generator's history. So the
position in ``last.pth`` is the whole random state, and a resumed run on one CPU process ends in the same bits as an
uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..bulk.batches import rows_of
from ..deploy.eager import EagerRunner
from ..evaluation.answers import Answer, answers_of
from ..evaluation.class_folders import DataError, Samples, list_training_data
from ..evaluation.metrics import Tally
from ..resnext import ResNeXt
from ..system.progress import Pace, Progress, working
from ..system.torchrun import is_first
from ..timm_form import is_folder
from ._torchvision import import_torchvision
from .checkpoint import Checkpoint, save_checkpoint, variant_of
from .data import EpochBatches, TrainingImages, collate, seeded
from .distillation import distilled, find_teacher
from .distributed import Processes, joined
from .optimisation import AveragedModel, learning_rate_at, make_optimizer, set_learning_rate
from .recipe import RECIPES, Architecture, TrainOptions
from .resuming import fingerprint, load_run, note_options, run_to_resume, what_is_kept
from .run_folder import METRICS, make_folder, write_answers, write_history
from .starting import amp_dtype, mixing, starting_model
from .unreadable import Unreadable


class DivergenceError(RuntimeError):
    """The loss is no longer a number. The message gives the step and what to try."""


def finetune(options: TrainOptions, report: Callable[[str], None] = print) -> list[dict[str, float]]:
    """Train as ``options`` say and leave the run's files in ``options.output``.

    Under torchrun every process calls this; the first one writes and reports.

    Returns:
        What metrics.csv holds: an entry of `METRICS` for each epoch.

    Raises:
        ValueError: options that cannot be had, or a teacher of other classes or another size.
        DataError: a data set that cannot be trained on, told before training starts, or too many unreadable images.
        DivergenceError: the loss is NaN or infinite.
        swsl.WeightsError, ModelError: the weights to start from, or the teacher, cannot be had or do not fit.
        ImportError: torchvision is missing.
        KeyboardInterrupt: interrupted; with words, in the first process, that say what is kept and how to go on.
    """
    run: _Run | None = None
    try:
        import_torchvision()
        with working(f"listing {options.data}"):
            train, val = list_training_data(options.data, report=is_first())
        with joined(options.device) as processes:
            said = report if processes.first else lambda _: None
            run = _Run(options, processes, train, val, said)
            return run.fit()
    except (KeyboardInterrupt, RuntimeError) as error:
        # Among several processes a stop may end in another's error: of a group that a stopped process has left.
        stopped: BaseException | None = error
        while stopped is not None and not isinstance(stopped, KeyboardInterrupt):
            stopped = stopped.__context__
        if stopped is None:
            raise
        raise KeyboardInterrupt(what_is_kept(options, run.saved if run else None)) from None


class _Run:
    def __init__(
        self, options: TrainOptions, processes: Processes, train: Samples, val: Samples,
        report: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.options, self.processes, self.train, self.val = options, processes, train, val
        self.report = report
        self.recipe = options.resolved(processes.world)
        self.batches = EpochBatches(
            len(train.paths), options.batch_size, accumulate=options.accumulate,
            rank=processes.rank, world=processes.world, seed=options.seed,
        )  # fmt: skip
        self.epoch = self.step = 0
        self.saved: tuple[int, int] | None = None  # epoch and step of last.pth
        self.sums = torch.zeros(3, dtype=torch.float64)  # of this process and epoch: loss, right, images
        self.history: list[dict[str, float]] = []
        self.best: list[float] = []  # accuracy and minus the loss of best.pth

        self.teacher = find_teacher(options, train.classes, processes.device)
        path = run_to_resume(options, processes, report)
        begun = load_run(path, self._fingerprint()) if path else None
        self._prepare_model(begun)
        if processes.first:
            make_folder(options.output)
            if not begun:
                note_options(options.output, self._fingerprint())
        state = begun and begun.training
        self.unreadable = Unreadable(
            len(train.paths) + len(val.paths),
            options.max_corrupt,
            processes,
            state["corrupt"] if state else {},
        )
        if state:
            self._restore(state)

    def _prepare_model(self, begun: Checkpoint | None) -> None:
        options, device = self.options, self.processes.device
        self.amp = amp_dtype(options.amp, device)
        torch.manual_seed(options.seed)
        if begun:
            self.model, self.spec, self.license = begun.model, begun.spec, begun.license
        else:
            self.model, self.spec, self.license = starting_model(options, len(self.train.classes))
        if self.teacher:
            self.teacher.check_size(self.spec)
        self.model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if options.freeze_backbone:
            self.model.requires_grad_(False)
            self.model.fc.requires_grad_(True)
        self.optimizer = make_optimizer(
            self.model,
            weight_decay=self.recipe.weight_decay,
            norm_decay=options.norm_decay,
            layer_decay=options.layer_decay,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp == torch.float16)
        self.average = AveragedModel(self.model, options.ema) if options.ema else None

        # What runs a step: the same parameters, wrapped. The model itself is what is validated and saved.
        wrapped: nn.Module = self.model
        if options.sync_bn:
            if device.type != "cuda":
                raise ValueError(
                    "sync_bn: PyTorch synchronises BatchNorm on GPUs only; leave it out on a CPU"
                )
            wrapped = self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[assignment]
        self.parallel: nn.parallel.DistributedDataParallel | None = None
        if self.processes.world > 1:
            wrapped = self.parallel = self.processes.wrap(wrapped)
        self.forward = torch.compile(wrapped) if options.compile else wrapped

        counts = torch.bincount(torch.tensor(self.train.targets)).float()
        weights = counts.sum() / (len(counts) * counts)  # a mean of 1 over the training images
        self.class_weights = weights.to(device) if options.class_weights else None
        self.mean = torch.tensor(self.spec.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(self.spec.std, device=device).view(1, 3, 1, 1)
        self.mixing = mixing(options, len(self.train.classes))

    def fit(self) -> list[dict[str, float]]:
        options, epochs = self.options, self.recipe.epochs
        if not self.saved:
            self._report_start()
        images = TrainingImages(self.train, self.spec, options.augmentation, options.seed)
        loader = DataLoader(
            images, batch_sampler=self.batches, num_workers=options.workers, collate_fn=collate,
            persistent_workers=options.workers > 0, pin_memory=self.processes.device.type == "cuda",
        )  # fmt: skip
        done = sum(self.batches.step_size(step) for step in range(self.step))
        validated = len(self.val.paths[self.processes.rank :: self.processes.world])
        self.pace = Pace((epochs - self.epoch) * (len(self.train.paths) + validated) - done)
        for epoch in range(self.epoch, epochs):
            self.epoch = epoch
            rate = self._train_epoch(loader)
            self._validate(rate)
            self.epoch, self.step = epoch + 1, 0
            self.sums.zero_()
            self._save_last()
        if self.processes.first:  # once more: the run may have been killed just before
            write_history(options.output, self.history, options.loss_note)
        self.report(f"best top-1 {self.best[0]:.2%}: {options.output / 'best.pth'}")
        return self.history

    def _train_epoch(self, loader: DataLoader[Any]) -> float:
        """One epoch, or what is left of it. Returns its last learning rate."""
        options, batches = self.options, self.batches
        batches.epoch, batches.first_step = self.epoch, self.step
        self.model.train(not options.freeze_backbone)
        steps = batches.steps * self.recipe.epochs
        warmup = min(round(options.warmup_epochs * batches.steps), steps // 2)
        rate = 0.0
        iterator = iter(loader)
        left = sum(batches.step_size(step) for step in range(self.step, batches.steps))
        with Progress(f"images of epoch {self.epoch + 1}", left, run=self.pace) as progress:
            for step in range(self.step, batches.steps):
                done = self.epoch * batches.steps + step
                rate = learning_rate_at(done, steps, warmup, self.recipe.learning_rate)
                set_learning_rate(self.optimizer, rate)
                parts = [next(iterator) for _ in range(options.accumulate)]
                for *_, skipped in parts:
                    self.unreadable.add(skipped)
                self._train_step([part[:2] for part in parts], step)
                progress.note = f"loss {self.sums[0] / self.sums[2]:.4f}, learning rate {rate:.3g}"
                progress.advance(batches.step_size(step))
                self.step = step + 1
                regular = options.checkpoint_steps and (done + 1) % options.checkpoint_steps == 0
                if regular and self.step < batches.steps:
                    self._save_last()
        return rate

    def _train_step(self, parts: list[tuple[Tensor, Tensor]], step: int) -> None:
        """Move the weights by the gradient of the mean loss over the step's images, in all processes together."""
        images = self.batches.step_size(step)
        self.optimizer.zero_grad(set_to_none=True)
        for number, (pixels, targets) in enumerate(parts):
            last = number == len(parts) - 1
            quiet = self.parallel.no_sync() if self.parallel and not last else contextlib.nullcontext()
            with quiet:  # gradients travel once a step
                loss, right = self._loss(pixels, targets, step, number)
                # DistributedDataParallel takes the mean over processes, where the sum is wanted.
                self.scaler.scale(loss * (self.processes.world / images)).backward()
            value = loss.item()
            if not math.isfinite(value):
                raise self._diverged(
                    f"epoch {self.epoch + 1}, step {step + 1} of {self.batches.steps}", value
                )
            self.sums += torch.tensor([value, right, len(targets)], dtype=torch.float64)
        if self.options.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.model)

    def _loss(self, pixels: Tensor, targets: Tensor, step: int, number: int) -> tuple[Tensor, int]:
        """The summed loss of a batch of uint8 images, and how many were recognised."""
        device = self.processes.device
        images = pixels.to(device, non_blocking=True, memory_format=torch.channels_last)
        images = images.float().div_(255).sub_(self.mean).div_(self.std)
        targets = soft = targets.to(device, non_blocking=True)
        if self.mixing:
            with seeded(self.options.seed, "mix", self.epoch, step, self.processes.rank, number):
                images, soft = self.mixing(images, targets)
        with torch.autocast(device.type, self.amp or torch.bfloat16, enabled=self.amp is not None):
            logits = self.forward(images).float()
            taught = self.teacher.logits(images, self.spec) if self.teacher else None
        loss = nn.functional.cross_entropy(
            logits, soft, self.class_weights, reduction="sum", label_smoothing=self.recipe.label_smoothing
        )
        if taught is not None:
            loss = distilled(loss, logits, taught, self.options.distill_weight, self.options.temperature)
        return loss, int((logits.argmax(1) == targets).sum())

    def _validate(self, rate: float) -> None:
        """Measure, keep the model if it is the best, and write the epoch's line."""
        processes, classes = self.processes, self.train.classes
        model = self.average.model if self.average else self.model
        for buffer in model.buffers():
            processes.share(buffer)  # BatchNorm's statistics are each process's own; the first one's are kept
        runner = EagerRunner(
            model, spec=self.spec, labels=classes, device=str(processes.device), batch_size=self.options.batch_size
        )  # fmt: skip
        mine = slice(processes.rank, None, processes.world)  # every image once, in one process
        paths, targets = self.val.paths[mine], torch.tensor(self.val.targets[mine], dtype=torch.int64)
        tally = Tally(len(classes))
        answers: dict[int, Answer] = {}  # by the image's place among all
        with Progress("images to validate", len(paths), run=self.pace) as progress:
            for places, logits, errors in rows_of(runner, paths, workers=max(self.options.workers, 1)):
                self.unreadable.add((paths[place], str(error)) for place, error in errors)
                if places:
                    top = tally.update(logits, targets[places])
                    found = answers_of(logits, top, targets[places], [paths[place] for place in places])
                    answers |= zip(
                        (processes.rank + place * processes.world for place in places), found, strict=True
                    )
                progress.advance(len(places) + len(errors), errors=len(errors))
        self.unreadable.merge()
        tally.reduce(processes.sum)
        for part in processes.gather(answers):
            answers |= part
        loss, right, images = processes.sum(self.sums.clone()).tolist()
        if tally.images == 0:
            raise DataError(f"{self.options.data / 'val'}: not one image can be read")
        if not math.isfinite(tally.loss):
            raise self._diverged(f"the end of epoch {self.epoch + 1}", tally.loss)

        row = (
            self.epoch + 1,
            rate,
            loss / images,
            right / images,
            tally.loss,
            tally.top1.value,
            tally.top5.value,
        )
        self.history.append(dict(zip(METRICS, row, strict=True)))
        score = [tally.top1.value, -tally.loss]
        improved = not self.best or score > self.best
        if improved:
            self.best = score
        if processes.first:
            if improved:
                metrics = {
                    key: value for key, value in self.history[-1].items() if key.startswith(("epoch", "val"))
                }
                save_checkpoint(self.options.output / "best.pth", self._checkpoint(model, metrics))
                ordered = [answers[place] for place in sorted(answers)]
                write_answers(self.options.output, classes, tally.confusion, ordered)
            write_history(self.options.output, self.history, self.options.loss_note)
        width = len(str(self.recipe.epochs))
        self.report(
            f"epoch {self.epoch + 1:{width}}/{self.recipe.epochs}  train loss {loss / images:.4f} top-1 {right / images:7.2%}"
            f"  val loss {tally.loss:.4f} top-1 {tally.top1.value:7.2%}{'  best' if improved else ''}"
        )

    def _checkpoint(self, model: ResNeXt, metrics: dict[str, float]) -> Checkpoint:
        labels = tuple(self.train.classes)
        return Checkpoint(model, self.spec, labels, variant_of(model), self.license, metrics)

    def _save_last(self) -> None:
        sums = self.processes.gather(self.sums.tolist())
        unreadable = self.unreadable.gathered()
        if not self.processes.first:
            return
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise self._diverged(f"epoch {self.epoch + 1}, step {self.step}", math.nan)
        checkpoint = self._checkpoint(self.model, {})
        checkpoint.training = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if not self.average else self.average.model.state_dict(),
            "average_updates": 0 if not self.average else self.average.updates,
            "epoch": self.epoch,
            "step": self.step,
            "sums": sums,
            "history": self.history,
            "best": self.best,
            "corrupt": unreadable,
            "options": self._fingerprint(),
        }
        save_checkpoint(self.options.output / "last.pth", checkpoint)
        self.saved = self.epoch, self.step

    def _restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.model.load_state_dict(state["average"])
            self.average.updates = state["average_updates"]
        self.epoch, self.step = self.saved = state["epoch"], state["step"]
        self.sums = torch.tensor(state["sums"][self.processes.rank], dtype=torch.float64)
        self.history, self.best = state["history"], state["best"]
        if self.epoch < self.recipe.epochs:
            self.report(f"resumed at epoch {self.epoch + 1}, step {self.step}")

    def _fingerprint(self) -> dict[str, str]:
        teacher = self.teacher.fingerprint if self.teacher else None
        return fingerprint(self.options, len(self.train.paths), self.processes.world, teacher)

    def _diverged(self, where: str, loss: float) -> DivergenceError:
        advice = [f"a learning rate below {self.recipe.learning_rate:g} (--lr)", "a longer --warmup-epochs"]
        if self.options.clip_norm is None:
            advice.append("--clip-norm 1")
        if self.amp is not None:
            advice.append("--amp off")
        return DivergenceError(
            f"training diverged at {where}: the loss is {loss}. Try {', '.join(advice)}; "
            f"{self.options.output / 'last.pth'} (if it is there) is from before"
        )

    def _report_start(self) -> None:
        options, recipe = self.options, self.recipe
        model = self.model
        name = variant_of(model) or str(Architecture(model.layers, model.groups, model.width_per_group))
        start = (
            "a fresh initialisation"
            if options.scratch
            else options.weights
            or (options.model if is_folder(options.model) else "the published weights (CC-BY-NC 4.0)")
        )
        world = self.processes.world
        self.report(
            f"{name} from {start}: {len(self.train.paths):,} training and {len(self.val.paths):,} validation images of "
            f"{len(self.train.classes)} classes, {world} process{'es' * (world > 1)} on {self.processes.device.type}"
            f"{f', {self.amp} precision'.replace('torch.', '') if self.amp else ''}"
        )
        rate = f"{recipe.learning_rate:g}"
        if options.learning_rate is None:
            reference = RECIPES[options.recipe]
            rate += f" ({reference.learning_rate:g} for batches of {reference.batch_size}, scaled to {recipe.batch_size})"
        self.report(
            f"recipe {options.recipe}: {recipe.epochs} epochs of {self.batches.steps} steps, learning rate {rate}, "
            f"weight decay {recipe.weight_decay:g}, label smoothing {recipe.label_smoothing:g}"
        )
