"""The training run: data, detector and optimiser put together, and the loop over epochs."""

import math
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from dwtriton.config import Config, dump_config, override_config
from dwtriton.data import DataError, eval_loader, prepare_data, train_loader
from dwtriton.data.batching import Batch
from dwtriton.errors import UserError
from dwtriton.files import make_folder, write_atomically, write_text
from dwtriton.model.backbone import load_backbone_weights
from dwtriton.model.detector import build_detector
from dwtriton.targets import pack_targets
from dwtriton.train.checkpoint import (
    Checkpoint,
    check_continues,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from dwtriton.train.evaluation import Evaluation, detect, evaluate
from dwtriton.train.optimizer import build_optimizer, lr_factor, set_learning_rate
from dwtriton.train.pictures import draw_curves, draw_predictions
from dwtriton.train.reporting import Display, MetricsFile, Speed, say

PICTURED = 6  # validation images in predictions.png


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite: names the term, the iteration and the images."""


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""


class Pending(NamedTuple):
    """An iteration whose losses are still to be read from the device."""

    iteration: int
    epoch: int
    lr: float
    names: list[str]
    losses: torch.Tensor  # [len(names)]
    batch: Batch


class Trainer:
    """One run in one folder: `last.pt`, `best.pt`, `metrics.jsonl`, `config.toml`, `curves.png`, `predictions.png`."""

    def __init__(self, cfg: Config, out: Path, console: Console) -> None:
        """Build everything a run needs. Raises the errors of config, data and weights before anything is written."""
        self.out, self.console = out, console
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = choose_precision(cfg.train.precision, self.device)
        self.cfg = cfg = override_config(cfg, [f"train.precision={self.precision}"])
        self.train_set, self.val_set = prepare_data(cfg)
        self.loader = train_loader(self.train_set, cfg)
        self.val_loader = eval_loader(self.val_set, cfg)
        torch.manual_seed(cfg.train.seed)
        self.detector = build_detector(cfg)
        self.iteration = 0  # optimiser steps done
        self.per_epoch = len(self.loader)
        self.total = cfg.schedule.epochs * self.per_epoch
        self.pending: Pending | None = None
        self.broken: set[str] = set()
        self.stop_requested = False

    def start(self) -> None:
        """Begin in an empty folder, from the backbone weights of the config."""
        if (self.out / "last.pt").exists():
            raise UserError(f"{self.out} already holds a run: add --resume to go on with it, or choose another --out")
        load_backbone_weights(self.detector.backbone, self.cfg.backbone.weights)
        self._place()

    def resume(self) -> None:
        """Go on from `last.pt`, where the run stopped."""
        path = self.out / "last.pt"
        checkpoint = load_checkpoint(path)
        check_continues(path, checkpoint, self.cfg, self.train_set.class_names)
        load_weights(self.detector, checkpoint.model, str(path))
        self.iteration = checkpoint.iteration
        self._place()
        self.optimizer.load_state_dict(checkpoint.optimizer)

    def _place(self) -> None:
        self.detector.to(self.device, memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.detector, self.cfg.optimizer, self.cfg.data.batch_size)
        make_folder(self.out)
        write_text(self.out / "config.toml", dump_config(self.cfg))
        self.metrics = MetricsFile(self.out / "metrics.jsonl", self.iteration)

    def summary(self) -> str:
        """What is about to run, and what the data sets left out."""
        parameters = sum(p.numel() for p in self.detector.parameters() if p.requires_grad)
        done = f", {self.iteration} of them done" if self.iteration else ""
        lines = [
            f"{parameters / 1e6:.1f} M trainable parameters, {self.precision} on {self.device.type}",
            f"{len(self.train_set)} training and {len(self.val_set)} validation images",
            f"{self.cfg.schedule.epochs} epochs x {self.per_epoch} iterations{done}",
        ]
        for split, data in (("training", self.train_set), ("validation", self.val_set)):
            lines += [f"{split} data: {line}" for line in data.report.summary()]
        return "\n".join(lines)

    def left_out(self) -> int:
        """Images and annotations that could not be used so far, in both splits."""
        return sum(data.report.counts.total() for data in (self.train_set, self.val_set)) + len(self.broken)

    def fit(self) -> Evaluation:
        """Train to the last epoch; returns the final evaluation.

        Raises NonFiniteLossError at latest one iteration after the loss went bad, with `last.pt` as it was, and
        Interrupted after SIGINT or SIGTERM, with `last.pt` at the iteration reached.
        """
        self.speed = Speed()
        display = Display(self.console, self.total, self.iteration, self.cfg.train.log_every)
        with stopping_on_signals(self._request_stop), display as self.display:
            if self._evaluation_due():  # resumed at the end of an epoch
                result = self.evaluate()
            while self.iteration < self.total:
                self.train_epoch()
                if self._evaluation_due():
                    result = self.evaluate()
        return result

    def train_epoch(self) -> None:
        """The iterations left of the current epoch, then a checkpoint."""
        self.detector.train()
        epoch, done = divmod(self.iteration, self.per_epoch)
        self.loader.batch_sampler.set_epoch(epoch, start=done)
        self.speed.reset()
        for batch in self.speed.timed(iter(self.loader)):
            self.step(batch, epoch)
            if self.stop_requested:
                self.save()
                raise Interrupted
            if self.iteration % self.cfg.train.checkpoint_every == 0:
                self.save()
        self.save()

    def step(self, batch: Batch, epoch: int) -> None:
        """One optimiser step. Its losses are read when the next one begins: loading does not wait for the device."""
        self.settle()
        self._report_broken(batch.broken)
        if not len(batch):
            raise DataError(f"no training image of this orientation can be read: {batch.broken[0]}")
        lr = set_learning_rate(self.optimizer, lr_factor(self.iteration, self.cfg.schedule, self.per_epoch))
        images = batch.images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        targets = pack_targets(batch.targets, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            losses = self.detector(images, targets)
        total = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.iteration += 1
        values = torch.stack([total, *losses.values()]).detach()
        self.pending = Pending(self.iteration, epoch + 1, lr, ["loss", *losses], values, batch)

    def settle(self) -> None:
        """Read, check and record the losses of the iteration that is pending, if one is."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        losses = dict(zip(pending.names, pending.losses.tolist()))
        bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            raise NonFiniteLossError(self._explain_failure(" and ".join(bad), pending))
        self.metrics.step(pending.iteration, pending.epoch, pending.lr, losses)
        self.display.step(pending.iteration, pending.epoch, losses, self.speed)

    def save(self) -> None:
        """Write `last.pt`, once every loss so far and every tensor in it are known to be finite."""
        latest = self.pending
        self.settle()
        bad = [name for name, tensor in self.detector.state_dict().items() if not tensor.isfinite().all()]
        if bad:
            raise NonFiniteLossError(self._explain_failure(f"{bad[0]} is not finite after its update", latest))
        save_checkpoint(
            self.out / "last.pt",
            Checkpoint(
                config=self.cfg,
                class_names=self.train_set.class_names,
                category_ids=self.train_set.category_ids,
                iteration=self.iteration,
                model=self.detector.state_dict(),
                optimizer=self.optimizer.state_dict(),
            ),
        )

    def evaluate(self) -> Evaluation:
        """COCO figures of the validation split; records them, keeps `best.pt`, draws the pictures."""
        epoch = self.iteration // self.per_epoch
        with self.display.stage("evaluating", len(self.val_loader)) as advance:

            def on_batch(batch: Batch) -> None:
                if self.stop_requested:  # last.pt is written; a resumed run begins with this evaluation
                    raise Interrupted
                self._report_broken(batch.broken)
                advance()

            results = detect(self.detector, self.val_loader, self.val_set.category_ids, on_batch)
            evaluation = evaluate(self.val_set.coco, results)
            self.metrics.evaluation(self.iteration, epoch, evaluation)
            if evaluation.metrics["AP"] >= max(row["AP"] for row in self.metrics.evaluations()):
                write_atomically(self.out / "best.pt", lambda file: shutil.copyfile(self.out / "last.pt", file))
            draw_curves(self.metrics.rows, self.out / "curves.png")
            spread = range(0, len(self.val_set), max(1, len(self.val_set) // PICTURED))
            pictured = [(self.val_set.image_ids[i], Path(self.val_set.paths[i])) for i in spread][:PICTURED]
            draw_predictions(self.val_set.coco, results, pictured, self.out / "predictions.png")
        figures = "  ".join(f"{name} {evaluation.metrics[name]:.3f}" for name in ("AP", "AP50", "AP75"))
        say(self.console, f"epoch {epoch}/{self.cfg.schedule.epochs}  {figures}")
        return evaluation

    def _request_stop(self) -> None:
        self.stop_requested = True
        say(self.console, "stopping after this iteration; once more to stop at once", "yellow")

    def _explain_failure(self, what: str, pending: Pending) -> str:
        images = ", ".join(f"{i} ({path})" for i, path in zip(pending.batch.image_ids, pending.batch.paths))
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

    def _report_broken(self, files: list[str]) -> None:
        for broken in sorted(set(files) - self.broken):
            say(self.console, f"skipped, cannot be used: {broken}", "yellow")
        self.broken.update(files)


def choose_precision(setting: str, device: torch.device) -> str:
    """What `auto` means on this device: bfloat16 where the hardware multiplies it fast, else float32."""
    if setting != "auto":
        return setting
    fast = (
        torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu.get_capabilities().get("amx_bf16", False)
    )
    return "bfloat16" if fast else "float32"


@contextmanager
def stopping_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first SIGINT (Ctrl-C) or SIGTERM into `request_stop()`; a second one acts as it always does."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(_number, _frame) -> None:
        restore()
        request_stop()

    for number in signals:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
