"""The training run: builds data, detector and optimiser, and loops over epochs. Every rank runs it; rank 0 writes."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path

import torch
from rich.console import Console

from dwtriton.checkpoints.checkpoint import Checkpoint, check_continues, load_weights, start_from
from dwtriton.config.load import MACHINE_KEYS, flatten
from dwtriton.config.schema import Config
from dwtriton.console.cli import print_line
from dwtriton.console.progress import ProgressDisplay
from dwtriton.core import ranks
from dwtriton.core.errors import UserError
from dwtriton.core.text import one_line
from dwtriton.data.batch import Batch
from dwtriton.data.loaders import eval_loader, train_loader
from dwtriton.data.prepare import data_notes, draw_missing_shapes, prepare_data
from dwtriton.data.problems import DataError
from dwtriton.evaluate.coco_metrics import Evaluation, confirm, evaluate, gather_results
from dwtriton.inference.detect import detect
from dwtriton.model.backbone import load_backbone_weights
from dwtriton.model.detector import build_detector
from dwtriton.model.pixels import PixelDetector, compile_predict
from dwtriton.train.compile import watch_graphs
from dwtriton.train.failures import explain_failures
from dwtriton.train.finite import PendingStep, check_weights
from dwtriton.train.metrics import Speed, losses_line
from dwtriton.train.optimizer import check_warmup, lr_factor
from dwtriton.train.precompile import compile_buckets
from dwtriton.train.resume import check_data, check_iterations, finished_hint, load_last
from dwtriton.train.run_folder import LAST, RunFolder, written_at
from dwtriton.train.settle import settle_buckets, settle_compile, settle_for_device, training_device
from dwtriton.train.signals import Interrupted, stop_on_signals
from dwtriton.train.step import TrainStep
from dwtriton.train.tensorboard import import_writer


class Trainer:
    """One training run, on one rank of its job.

    `iteration` counts the optimiser steps done, of `total`, `per_epoch` in each epoch, and `saved` those in `last.pt`.
    In `cfg`, precision, compile mode and buckets are settled for this device and data. `folder` is None on all ranks
    but 0.
    """

    def __init__(
        self, cfg: Config, out: Path, console: Console, resume: bool = False, data_changed: bool = False
    ) -> None:
        """Build a new run, or continue one from `last.pt` in its folder; `console` is silent on all ranks but 0.

        Raises the errors of config, data, weights and checkpoint before anything is written, and UserError if a run
        would be continued on other data than before, except if `data_changed`.
        """
        self.out, self.last_checkpoint, self.console = out, out / LAST, console
        self.device = training_device()
        on_gpu = self.device.type == "cuda"
        compile_is_open = on_gpu and cfg.train.compile == "auto"
        cfg = settle_for_device(cfg, self.device)
        ranks.check_same(flatten(cfg), ignore=MACHINE_KEYS)
        with ranks.raise_on_all_ranks():
            if cfg.train.tensorboard:
                import_writer()
            if not resume and self.last_checkpoint.exists():
                raise UserError(f"{out} already holds a run: add --resume to continue it, or choose another --out")
            last_written = written_at(self.last_checkpoint)
            checkpoint = load_last(out) if resume else None
        with ranks.raise_on_all_ranks(), ranks.main_process_first():
            draw_missing_shapes(cfg.data, console)
        with ranks.raise_on_all_ranks():
            self.train_set, self.val_set = prepare_data(cfg)
            self.cfg = cfg = settle_buckets(cfg, self.train_set)
            self.loader = train_loader(self.train_set, cfg, ranks.rank(), ranks.world_size())
            self.val_loader = eval_loader(self.val_set, cfg, ranks.rank(), ranks.world_size())
            torch.manual_seed(cfg.train.seed)
            self.detector = build_detector(cfg)
        with ranks.raise_on_all_ranks(), ranks.main_process_first():  # rank 0 may have to download
            self.started_from = self._load_weights(checkpoint)

        self.iteration = self.saved = checkpoint.iteration if checkpoint else 0
        self.per_epoch = self.loader.batch_sampler.steps
        self.total = cfg.schedule.epochs * self.per_epoch
        self.problems = {"training": self.train_set.problems, "validation": self.val_set.problems}
        self.data = {"training data": self.train_set.fingerprint, "validation data": self.val_set.fingerprint}
        with ranks.raise_on_all_ranks():
            self.notes = self._notes(checkpoint, data_changed)
        images = self.micro_batch_size = cfg.data.batch_size // (ranks.world_size() * cfg.train.accumulate)
        ranks.check_same(self.data | {"data.buckets": cfg.data.buckets, "iteration": self.iteration})

        self.detector.to(self.device, memory_format=torch.channels_last)
        if compile_is_open:
            run = self.detector, self.device, images, self.total
            self.cfg, why = settle_compile(cfg, *run, before=checkpoint and checkpoint.config.train.compile)
            self.notes.append(why)
        self.train_step = TrainStep(self.detector, self.cfg, self.device, self.train_set.most_boxes(images))
        if checkpoint:
            with ranks.raise_on_all_ranks():
                self.train_step.load(checkpoint, self.last_checkpoint)
        self.predict = compile_predict(PixelDetector(self.train_step.eval_detector, cfg.data), cfg.inference.compile)
        with ranks.raise_on_all_ranks():
            position = self.iteration, self.per_epoch
            self.folder = RunFolder(out, cfg, *position, last_written) if ranks.is_main() else None
        self.notes += self.folder.notes if self.folder else []
        self.pending: PendingStep | None = None  # the latest step
        self.broken: set[str] = set()  # "PATH: reason" of images that could not be read
        self.stop_requested = False  # by a signal
        self.watch, self.speed = watch_graphs(self.cfg, on_gpu), Speed(ranks.world_size())
        self.display = ProgressDisplay(
            console, "training", self.total, done=self.iteration, steps_between_lines=cfg.train.log_every
        )

    def _load_weights(self, checkpoint: Checkpoint | None) -> str:
        """Load the detector's first weights: of a resumed run, of `train.weights`, or of the backbone alone."""
        if checkpoint:
            check_continues(self.last_checkpoint, checkpoint, self.cfg, self.train_set.class_names)
            load_weights(self.detector, checkpoint.model, str(self.last_checkpoint))
            return str(self.last_checkpoint)
        if self.cfg.train.weights:
            return start_from(self.detector, self.cfg.train.weights, self.train_set.class_names)
        load_backbone_weights(self.detector.backbone, self.cfg.backbone.weights)
        return f"backbone weights {self.cfg.backbone.weights}"

    def _notes(self, checkpoint: Checkpoint | None, data_changed: bool) -> list[str]:
        """Return warnings about the run's length and data. Raises UserError for what cannot be right."""
        if checkpoint is None:
            warning = check_warmup(self.cfg.schedule, self.total)
            return [warning] if warning else []
        notes = check_data(self.last_checkpoint, checkpoint, self.data, data_changed)
        check_iterations(self.last_checkpoint, self.iteration, self.total)
        return notes + ([finished_hint(self.last_checkpoint)] if self.iteration == self.total else [])

    def summary(self) -> str:
        """Return what is about to run, and what the data sets left out."""
        parameters = sum(p.numel() for p in self.detector.parameters() if p.requires_grad)
        done = f", {self.iteration} of them done" if self.iteration else ""
        shares = ((ranks.world_size(), "ranks"), (self.cfg.train.accumulate, "micro-batches"))
        split = "".join(f"{count} {name} x " for count, name in shares if count > 1)
        precision = f"{self.cfg.train.precision} on {self.device.type}"
        lines = [
            f"{parameters / 1e6:.1f} M trainable parameters, {precision}, from {self.started_from}",
            f"{split}{self.micro_batch_size} images in a step",
            f"{len(self.train_set)} training and {len(self.val_set)} validation images",
            f"{self.cfg.schedule.epochs} epochs x {self.per_epoch} iterations{done}",
            *data_notes(self.cfg.data, self.problems),
            *self.notes,
            *([f"TensorBoard: tensorboard --logdir {self.out}"] if self.cfg.train.tensorboard else []),
        ]
        return "\n".join(map(one_line, lines))

    def left_out(self) -> int:
        """Return how many images and annotations of both splits could not be used so far."""
        return sum(data.problems.left_out for data in (self.train_set, self.val_set)) + len(self.broken)

    def fit(self) -> Evaluation | None:
        """Train to the last epoch; return the final evaluation on rank 0, None on the others.

        Raises NonFiniteLossError at most one iteration after a loss became bad, with `last.pt` unchanged,
        Interrupted after SIGINT or SIGTERM, with `last.pt` at the iteration reached, and EvaluatorsDisagreeError.
        """
        folder = closing(self.folder) if self.folder else nullcontext()
        with stop_on_signals(self._request_stop), self.display, folder:
            self.compile_ahead()
            while True:
                evaluation = self.evaluate() if self._evaluation_due() else None  # a resumed run may begin with it
                if self.iteration == self.total:
                    return evaluation
                self.train_epoch()

    def compile_ahead(self) -> None:
        """Compile the network for every batch size before the first step, if the config asks for it."""
        if self.cfg.train.compile == "off" or not self.cfg.train.compile_ahead or self.iteration == self.total:
            return
        began, images, buckets = time.perf_counter(), self.micro_batch_size, self.cfg.data.buckets
        failures = explain_failures(self.cfg, images, max(buckets, key=math.prod))
        compiling = compile_buckets(self.train_step, images, self.train_set.weighted)
        with self.watch, self.display.stage("compiling", len(buckets)) as advance, failures, closing(compiling):
            for finished, what in compiling:
                advance(finished, what)
                self._stop_if_requested()
        recorded = f"; recorded {self.watch.recorded} CUDA graphs" if self.watch.expected_recordings else ""
        seconds = time.perf_counter() - began
        compiled = f"compiled {self.watch.graphs} graphs in {seconds:.0f} s, one for each batch size"
        print_line(self.console, compiled + recorded)

    def train_epoch(self) -> None:
        """Do the remaining iterations of the current epoch; write checkpoints between them and at the end."""
        self.detector.train()
        epoch, done = divmod(self.iteration, self.per_epoch)
        self.loader.batch_sampler.set_epoch(epoch, start=done)
        self.speed.reset()
        batches = self.speed.timed(iter(self.loader))
        for micro_batches in zip(*[batches] * self.cfg.train.accumulate):  # the same iterator `accumulate` times
            self.step(micro_batches, epoch)
            self._stop_if_requested()
            if self.iteration % self.cfg.train.checkpoint_every == 0 or self.iteration % self.per_epoch == 0:
                self.save()

    def step(self, micro_batches: Sequence[Batch], epoch: int) -> None:
        """Do one optimiser step, then read the losses of the one before: the device never waits for the host."""
        for batch in micro_batches:
            self._report_broken(batch.broken)
            if not len(batch):
                raise DataError(f"no training image of this orientation can be read: {batch.broken[0]}")
        images = micro_batches[0].images
        with self.watch, explain_failures(self.cfg, len(images), tuple(images.shape[2:])):
            factor = lr_factor(self.iteration, self.cfg.schedule, self.per_epoch)
            lr, losses = self.train_step(micro_batches, factor)
        self.record_pending()
        self.iteration += 1
        self.pending = PendingStep(self.iteration, epoch + 1, lr, losses, micro_batches)
        if reason := self.watch.unexpected_recompile():
            print_line(self.console, f"recompiled in iteration {self.iteration}: {reason}", "yellow")
        if self.watch.unexpected_recordings():
            why = "TORCH_LOGS=cudagraphs tells why, --set train.compile=default does without them"
            print_line(self.console, f"recorded more CUDA graphs in iteration {self.iteration}: {why}", "yellow")

    def record_pending(self) -> None:
        """Read, check and record the losses of the pending step, if there is one."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        losses = pending.read(self.last_checkpoint)
        if self.folder:
            self.folder.record("step", pending.iteration, pending.epoch, lr=pending.lr, **losses)
        self.display.advance(what=f"epoch {pending.epoch}", figures=f"{losses_line(losses)}  {self.speed}")
        if pending.iteration % self.cfg.train.log_every == 0:
            if self.folder:
                self.folder.record_speed(pending.iteration, self.speed)
            self.speed.reset()

    def save(self) -> None:
        """Write `last.pt`, after checking that every loss so far and every tensor in it are finite."""
        latest = self.pending
        self.record_pending()
        check_weights(self.detector, latest, self.started_from, self.last_checkpoint)
        if self.folder:
            classes = {"class_names": self.train_set.class_names, "category_ids": self.train_set.category_ids}
            state = self.train_step.checkpoint_state()
            data = {name: fingerprint._asdict() for name, fingerprint in self.data.items()}
            self.folder.save(Checkpoint(config=self.cfg, iteration=self.iteration, data=data, **classes, **state))
        self.saved = self.iteration

    def evaluate(self) -> Evaluation | None:
        """Detect in this rank's validation images; on rank 0 compute and record the COCO metrics of all, and plot."""
        epoch = self.iteration // self.per_epoch
        with self.display.stage("evaluating", len(self.val_loader)) as advance:
            gathered = gather_results(self._detect(advance), self.broken)
            if gathered is None:
                return None
            results, broken = gathered
            self._report_broken(broken)
            counted = self.cfg.inference.max_detections
            evaluation = evaluate(self.val_set.coco, results, max_detections=counted)
            self.folder.record_evaluation(self.iteration, epoch, evaluation, self.val_set, results)
            if self.iteration == self.total and not confirm(evaluation, self.val_set.coco, results, counted):
                print_line(self.console, "so many boxes or classes would take pycocotools long: nothing is confirmed")
        metrics = "  ".join(f"{name} {evaluation.metrics[name]:.3f}" for name in ("AP", "AP50", "AP75"))
        print_line(self.console, f"epoch {epoch}/{self.cfg.schedule.epochs}  {metrics}")
        return evaluation

    def _detect(self, advance: Callable[[], None]) -> list[dict]:
        """Return COCO results of this rank's images. Raises Interrupted on all ranks if any was asked to stop."""

        def on_batch(batch: Batch) -> None:
            if self.stop_requested:  # last.pt is written; a resumed run begins with this evaluation
                raise Interrupted
            self._report_broken(batch.broken)
            advance()

        ranks.broadcast_buffers(self.train_step.eval_detector)  # or else each rank has batch-norm statistics of its own
        results = []
        with suppress(Interrupted):
            results = detect(self.predict, self.val_loader, self.val_set.category_ids, on_batch)
        if ranks.any_across_ranks(self.stop_requested):
            raise Interrupted
        return results

    def _request_stop(self) -> None:
        self.stop_requested = True
        print_line(self.console, "stopping after this iteration; press Ctrl-C again to stop at once", "yellow")

    def _stop_if_requested(self) -> None:
        if ranks.any_across_ranks(self.stop_requested):
            self.save()
            raise Interrupted

    def _evaluation_due(self) -> bool:
        """Return whether an epoch has just ended that is evaluated: every `evaluate_every`-th and the last."""
        epoch, within = divmod(self.iteration, self.per_epoch)
        due = epoch % self.cfg.train.evaluate_every == 0 or epoch == self.cfg.schedule.epochs
        return epoch > 0 and within == 0 and due

    def _report_broken(self, files: Iterable[str]) -> None:
        for broken in sorted(set(files) - self.broken):
            print_line(self.console, f"skipped, cannot be used: {broken}", "yellow")
        self.broken.update(files)
