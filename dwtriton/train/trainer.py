"""The training run: data, detector and optimiser put together, and the loop over epochs.

Every process of a job runs this; what is written and told is the first one's.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from dwtriton.checkpoints.checkpoint import Checkpoint, check_continues, load_checkpoint, load_weights, start_from
from dwtriton.config.schema import MACHINE_KEYS, Config, flatten
from dwtriton.console.cli import print_line
from dwtriton.core import ranks
from dwtriton.core.errors import UserError
from dwtriton.data.batching import Batch, eval_loader, train_loader
from dwtriton.data.prepare import draw_missing_shapes, prepare_data
from dwtriton.data.problems import DataError
from dwtriton.evaluate.coco_metrics import Evaluation, evaluate, gather_results
from dwtriton.inference.detect import detect
from dwtriton.model.backbone import load_backbone_weights
from dwtriton.model.detector import Detections, build_detector
from dwtriton.model.pixels import PixelDetector, compile_predict
from dwtriton.train.compile import GraphWatch
from dwtriton.train.metrics import Display, Speed
from dwtriton.train.optimizer import lr_factor
from dwtriton.train.run_folder import RunFolder
from dwtriton.train.settle import settle_buckets, settle_for_device
from dwtriton.train.signals import Interrupted, stop_on_signals
from dwtriton.train.step import StepLosses, TrainStep
from dwtriton.train.tensorboard import import_writer


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite: names the term, the iteration and the images."""


class Pending(NamedTuple):
    """An iteration whose losses are still to be read from the device."""

    iteration: int
    epoch: int
    lr: float
    losses: StepLosses
    batches: list[Batch]  # one for each pass


class Trainer:
    """One run: data, detector and optimiser, the loop over epochs, and what becomes of it in the run's folder."""

    def __init__(self, cfg: Config, out: Path, console: Console) -> None:
        """Build everything a run needs. Raises the errors of config, data and weights before anything is written."""
        self.out, self.console = out, console
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        )
        cfg = self.cfg = settle_for_device(cfg, self.device)
        ranks.check_same(flatten(cfg), ignore=MACHINE_KEYS)
        with ranks.raise_on_all_ranks():
            if cfg.train.tensorboard:
                import_writer()
            with ranks.main_process_first():
                draw_missing_shapes(cfg.data, console)
            self.train_set, self.val_set = prepare_data(cfg)
            cfg = self.cfg = settle_buckets(cfg, self.train_set)
            self.loader = train_loader(self.train_set, cfg, ranks.rank(), ranks.world_size())
            self.val_loader = eval_loader(self.val_set, cfg, ranks.rank(), ranks.world_size())
            torch.manual_seed(cfg.train.seed)
            self.detector = build_detector(cfg)
        self.iteration = 0  # optimiser steps done
        self.per_epoch = self.loader.batch_sampler.steps
        self.total = cfg.schedule.epochs * self.per_epoch
        self.started_from = "fresh weights"
        self.micro_batch_size = cfg.data.batch_size // (ranks.world_size() * cfg.train.accumulate)
        self.watch = GraphWatch(expected=0 if cfg.train.compile == "off" else len(cfg.data.buckets))
        self.pending: Pending | None = None
        self.folder: RunFolder | None = None  # of the first process
        self.predict: Callable[..., Detections] | None = None  # of the detector that is evaluated
        self.broken: set[str] = set()
        self.stop_requested = False

    def start(self) -> None:
        """Begin in an empty folder, from the checkpoint `train.weights` or the backbone weights of the config."""
        with ranks.raise_on_all_ranks():
            if (self.out / "last.pt").exists():
                raise UserError(
                    f"{self.out} already holds a run: add --resume to go on with it, or choose another --out"
                )
        with ranks.raise_on_all_ranks():
            if self.cfg.train.weights:
                self.started_from = start_from(self.detector, self.cfg.train.weights, self.train_set.class_names)
            else:
                with ranks.main_process_first():  # the first may have to download
                    load_backbone_weights(self.detector.backbone, self.cfg.backbone.weights)
                self.started_from = f"backbone weights {self.cfg.backbone.weights}"
        self._place()

    def resume(self) -> None:
        """Go on from `last.pt`, where the run stopped."""
        path = self.out / "last.pt"
        with ranks.raise_on_all_ranks():
            checkpoint = load_checkpoint(path)
            check_continues(path, checkpoint, self.cfg, self.train_set.class_names)
            load_weights(self.detector, checkpoint.model, str(path))
        self.iteration = checkpoint.iteration
        self.started_from = str(path)
        self._place()
        self.train_step.load(checkpoint)

    def _place(self) -> None:
        """Put the detector on its device and the run into its folder, once all processes agree what the run is."""
        data = {"training data": self.train_set.fingerprint, "validation data": self.val_set.fingerprint}
        ranks.check_same(data | {"data.buckets": self.cfg.data.buckets, "iteration": self.iteration})
        self.detector.to(self.device, memory_format=torch.channels_last)
        most_boxes = self.train_set.most_boxes(self.micro_batch_size)
        self.train_step = TrainStep(self.detector, self.cfg, self.device, most_boxes)
        with ranks.raise_on_all_ranks():
            if ranks.is_main():
                self.folder = RunFolder(self.out, self.cfg, self.iteration)

    def summary(self) -> str:
        """What is about to run, and what the data sets left out."""
        parameters = sum(p.numel() for p in self.detector.parameters() if p.requires_grad)
        done = f", {self.iteration} of them done" if self.iteration else ""
        passes = self.cfg.train.accumulate
        shares = f"{ranks.world_size()} x " * (ranks.world_size() > 1) + f"{passes} passes x " * (passes > 1)
        lines = [
            f"{parameters / 1e6:.1f} M trainable parameters, {self.cfg.train.precision} on {self.device.type}, "
            f"from {self.started_from}",
            f"{shares}{self.micro_batch_size} images in a step",
            f"{len(self.train_set)} training and {len(self.val_set)} validation images",
            f"{self.cfg.schedule.epochs} epochs x {self.per_epoch} iterations{done}",
        ]
        for split, data in (("training", self.train_set), ("validation", self.val_set)):
            lines += [f"{split} data: {line}" for line in data.problems.summary()]
        if self.cfg.train.tensorboard:
            lines.append(f"TensorBoard: tensorboard --logdir {self.out}")
        return "\n".join(lines)

    def left_out(self) -> int:
        """Images and annotations that could not be used so far, in both splits."""
        return sum(data.problems.counts.total() for data in (self.train_set, self.val_set)) + len(self.broken)

    def fit(self) -> Evaluation | None:
        """Train to the last epoch; returns the final evaluation, on the first process.

        Raises NonFiniteLossError at latest one iteration after the loss went bad, with `last.pt` as it was, and
        Interrupted after SIGINT or SIGTERM, with `last.pt` at the iteration reached.
        """
        self.speed = Speed(ranks.world_size())
        display = Display(self.console, self.total, self.iteration, self.cfg.train.log_every)
        with stop_on_signals(self._request_stop), display as self.display, self.folder or nullcontext():
            self.compile_ahead()
            if self._evaluation_due():  # resumed at the end of an epoch
                result = self.evaluate()
            while self.iteration < self.total:
                self.train_epoch()
                if self._evaluation_due():
                    result = self.evaluate()
        return result

    def compile_ahead(self) -> None:
        """Compile the network for every size of batch, if the config asks for it before the first step."""
        if self.cfg.train.compile == "off" or not self.cfg.train.compile_ahead or self.iteration == self.total:
            return
        self.detector.train()
        began = time.perf_counter()
        with self.watch, self.display.stage("compiling", len(self.cfg.data.buckets)) as advance:
            for _ in self.train_step.compile_ahead(self.micro_batch_size):
                advance()
                if ranks.any_across_ranks(self.stop_requested):
                    self.save()
                    raise Interrupted
        seconds = time.perf_counter() - began
        print_line(self.console, f"compiled {self.watch.graphs} graphs in {seconds:.0f} s, one for each size of batch")

    def train_epoch(self) -> None:
        """The iterations left of the current epoch, then a checkpoint."""
        self.detector.train()
        epoch, done = divmod(self.iteration, self.per_epoch)
        self.loader.batch_sampler.set_epoch(epoch, start=done)
        self.speed.reset()
        passes = [self.speed.timed(iter(self.loader))] * self.cfg.train.accumulate  # one iterator, in every place
        for batches in zip(*passes):
            self.step(batches, epoch)
            if ranks.any_across_ranks(self.stop_requested):
                self.save()
                raise Interrupted
            if self.iteration % self.cfg.train.checkpoint_every == 0:
                self.save()
        self.save()
        if self.folder and self.cfg.train.keep_every and (epoch + 1) % self.cfg.train.keep_every == 0:
            self.folder.keep_last(f"epoch-{epoch + 1:03}.pt")

    def step(self, batches: Sequence[Batch], epoch: int) -> None:
        """One optimiser step. Its losses are read once the next one is on its way: the device always has work."""
        for batch in batches:
            self._report_broken(batch.broken)
            if not len(batch):
                raise DataError(f"no training image of this orientation can be read: {batch.broken[0]}")
        with self.watch:
            lr, losses = self.train_step(batches, lr_factor(self.iteration, self.cfg.schedule, self.per_epoch))
        self.settle()
        self.iteration += 1
        self.pending = Pending(self.iteration, epoch + 1, lr, losses, batches)
        if cause := self.watch.unexpected_recompile():
            print_line(self.console, f"recompiled in iteration {self.iteration}: {cause}", "yellow")

    def settle(self) -> None:
        """Read, check and record the losses of the iteration that is pending, if one is."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        losses = dict(zip(pending.losses.names, pending.losses.mean.read().tolist()))
        bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            finite = pending.losses.own.read().isfinite().all(1).tolist()
            suspects = [batch for batch, good in zip(pending.batches, finite) if not good]
            raise NonFiniteLossError(self._explain_failure(" and ".join(bad), pending, suspects))
        if self.folder:
            self.folder.step(pending.iteration, pending.epoch, pending.lr, losses)
            if pending.iteration % self.cfg.train.log_every == 0:
                self.folder.speed(pending.iteration, self.speed)
        self.display.step(pending.iteration, pending.epoch, losses, self.speed)

    def save(self) -> None:
        """Write `last.pt`, once every loss so far and every tensor in it are known to be finite."""
        latest = self.pending
        self.settle()
        bad = [name for name, tensor in self.detector.state_dict().items() if not tensor.isfinite().all()]
        if bad and latest is None:
            raise NonFiniteLossError(f"{bad[0]} is not finite before any step: look at {self.started_from}")
        if bad:
            what = f"{bad[0]} is not finite after its update"
            raise NonFiniteLossError(self._explain_failure(what, latest, latest.batches))
        if self.folder:
            self.folder.save(
                Checkpoint(
                    config=self.cfg,
                    class_names=self.train_set.class_names,
                    category_ids=self.train_set.category_ids,
                    iteration=self.iteration,
                    **self.train_step.checkpoint_state(),
                ),
            )

    def evaluate(self) -> Evaluation | None:
        """COCO figures of the validation split; records them, keeps `best.pt`, draws the pictures.

        Every process detects in its share of the images; the first does the rest, and returns the figures.
        """
        epoch = self.iteration // self.per_epoch
        with self.display.stage("evaluating", len(self.val_loader)) as advance:
            gathered = gather_results(self._detect(advance), self.broken)
            if gathered is None:
                return None
            results, broken = gathered
            self._report_broken(broken)
            evaluation = evaluate(self.val_set.coco, results)
            self.folder.evaluation(self.iteration, epoch, evaluation, self.val_set, results)
        figures = "  ".join(f"{name} {evaluation.metrics[name]:.3f}" for name in ("AP", "AP50", "AP75"))
        print_line(self.console, f"epoch {epoch}/{self.cfg.schedule.epochs}  {figures}")
        return evaluation

    def _detect(self, advance: Callable[[], None]) -> list[dict]:
        """COCO results of this process's images. Raises Interrupted, on all processes, if one is asked to stop."""

        def on_batch(batch: Batch) -> None:
            if self.stop_requested:  # last.pt is written; a resumed run begins with this evaluation
                raise Interrupted
            self._report_broken(batch.broken)
            advance()

        try:
            detector, category_ids = self.train_step.eval_detector(), self.val_set.category_ids
            if self.predict is None:
                self.predict = compile_predict(PixelDetector(detector, self.cfg.data), self.cfg.inference.compile)
            results = detect(self.predict, self.val_loader, category_ids, on_batch)
        except Interrupted:
            results = []
        if ranks.any_across_ranks(self.stop_requested):
            raise Interrupted
        return results

    def _request_stop(self) -> None:
        self.stop_requested = True
        print_line(self.console, "stopping after this iteration; once more to stop at once", "yellow")

    def _explain_failure(self, what: str, pending: Pending, suspects: list[Batch]) -> str:
        own = [f"{i} ({path})" for batch in suspects for i, path in zip(batch.image_ids, batch.paths)]
        images = ", ".join(image for of_rank in ranks.all_gather_object(own) for image in of_rank)
        last = self.out / "last.pt"
        kept = f"{last} is the last good checkpoint" if last.exists() else "there was no checkpoint yet"
        return (
            f"{what} at iteration {pending.iteration}, epoch {pending.epoch}; images: {images}. No checkpoint was "
            f"written since, {kept}. Begin again with a lower optimizer.lr, or look at these images"
        )

    def _evaluation_due(self) -> bool:
        """After every `evaluate_every` epochs and after the last."""
        epoch, within = divmod(self.iteration, self.per_epoch)
        due = epoch % self.cfg.train.evaluate_every == 0 or epoch == self.cfg.schedule.epochs
        return epoch > 0 and within == 0 and due

    def _report_broken(self, files: Iterable[str]) -> None:
        for broken in sorted(set(files) - self.broken):
            print_line(self.console, f"skipped, cannot be used: {broken}", "yellow")
        self.broken.update(files)
