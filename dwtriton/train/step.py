"""One optimiser step: forward and backward passes on every rank, then the same update of the weights on each."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dwtriton.checkpoints.checkpoint import Checkpoint, load_weights
from dwtriton.config.schema import Config
from dwtriton.core import ranks
from dwtriton.core.errors import UserError
from dwtriton.core.targets import pack_targets
from dwtriton.core.transfer import AsyncHostCopy, to_device
from dwtriton.data.batch import Batch
from dwtriton.data.buckets import Size
from dwtriton.model.detector import DualWeightDetector
from dwtriton.model.pixels import PixelDetector
from dwtriton.train.compile import compile_network
from dwtriton.train.ema import EMA
from dwtriton.train.optimizer import build_optimizer, set_learning_rate

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_convolutions(deterministic: bool) -> None:
    """Make cuDNN use deterministic convolutions by its heuristics, or the fastest of a trial, in the whole process."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


class StepLosses(NamedTuple):
    """Losses of one optimiser step, on their way to the CPU: `loss`, the sum that is minimised, and its terms."""

    names: list[str]
    mean: AsyncHostCopy  # [len(names)], over all micro-batches of all ranks
    own: AsyncHostCopy  # [micro-batches, len(names)], of this rank


class TrainStep:
    """Everything that an optimiser step changes: detector, optimiser, loss scale and EMA.

    A step's batch is split over the ranks and over `train.accumulate` micro-batches of each. All are padded to one
    size, and the gradient is their mean, so the number of ranks changes only rounding. Accumulation changes a little
    more: the loss is normalised over one micro-batch of all ranks (docs/method.md#normalisers). On a GPU the host does
    not wait.
    """

    def __init__(
        self, detector: DualWeightDetector, cfg: Config, device: torch.device, capacity: int | None = None
    ) -> None:
        """`train.precision` and `train.compile` of the config are settled, not auto.

        `capacity`: most boxes of a micro-batch; targets are padded to it under torch.compile.
        """
        choose_convolutions(cfg.train.deterministic)
        self.detector, self.cfg, self.device = detector, cfg, device
        self.capacity = None if cfg.train.compile == "off" else capacity
        self.network: nn.Module = PixelDetector(detector, cfg.data)
        if cfg.train.compile != "off":
            self.network = compile_network(self.network, cfg.train.compile, graphs=len(cfg.data.buckets))
        if ranks.world_size() > 1:
            self.network = DistributedDataParallel(
                self.network,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=not cfg.backbone.frozen_statistics,
                gradient_as_bucket_view=True,
            )
        self.optimizer = build_optimizer(detector, cfg.optimizer, cfg.data.batch_size)
        self.scaler = torch.amp.GradScaler(device.type, enabled=cfg.train.precision == "float16")
        self.ema = EMA(detector, cfg.train.ema_decay) if cfg.train.ema_decay else None
        self.eval_detector = detector if self.ema is None else self.ema.module  # the one to evaluate

    def __call__(self, micro_batches: list[Batch], lr_factor: float) -> tuple[float, StepLosses]:
        """Update the weights by this rank's share of a batch; return the learning rate and the losses.

        Under float16 a step whose gradients overflow lowers the loss scale and changes no weight; the EMA averages the
        unchanged weights in.
        """
        lr = set_learning_rate(self.optimizer, lr_factor)
        names, own = self._accumulate(micro_batches)
        if self.cfg.optimizer.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.detector.parameters(), self.cfg.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.detector)
        return lr, StepLosses(names, AsyncHostCopy(ranks.all_reduce_mean(own.mean(0))), AsyncHostCopy(own))

    def _accumulate(self, micro_batches: list[Batch]) -> tuple[list[str], Tensor]:
        """Compute the gradients of a step; return the names of its losses and their values [micro-batches, losses].

        CUDA graphs may write over what those of the last step returned, its gradients among them, but not over what
        those of an earlier micro-batch did: a step begins once.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if self.cfg.train.compile != "off":
            torch.compiler.cudagraph_mark_step_begin()
        own = []
        for index, batch in enumerate(micro_batches, 1):
            only_add_up = ranks.world_size() > 1 and index < len(micro_batches)  # ranks exchange the last sum
            with self.network.no_sync() if only_add_up else nullcontext():
                losses = self._losses(batch)
                total = sum(losses.values())
                self.scaler.scale(total / len(micro_batches)).backward()
            own.append(torch.stack([total, *losses.values()]).detach())
        return ["loss", *losses], torch.stack(own)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        images = batch.images.to(self.device, non_blocking=True)
        sizes = to_device(torch.tensor(batch.image_sizes), self.device)
        packed = pack_targets(batch.targets, self.device, self.capacity)
        dtype = AUTOCAST.get(self.cfg.train.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.network(images, sizes, packed)

    def compile_ahead(self, images: int, weighted: bool = False) -> Iterator[None]:
        """Compile for micro-batches of `images` images, one bucket at a time; `weighted`: their targets have weights.

        At every yield, and after an error, everything that a step depends on is unchanged, as `rehearse` leaves it.
        """
        for size in self.cfg.data.buckets:
            for _ in range(2):  # CUDA graphs are recorded in the second
                self.rehearse(images, size, weighted)
            yield

    def rehearse(self, images: int, size: Size, weighted: bool = False) -> None:
        """Do everything that a step is made of, but for the update, with black images of (h, w) without boxes.

        Afterwards the detector is in training mode, and everything that a step depends on is unchanged: buffers
        (batch-norm statistics), gradients and random numbers.
        """
        self.detector.train()
        no_boxes = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        if weighted:
            no_boxes["weights"] = torch.zeros(0)
        black = Batch(
            images=torch.zeros(images, *size, 3, dtype=torch.uint8).permute(0, 3, 1, 2),  # channels_last
            targets=[no_boxes] * images,
            image_ids=[],
            image_sizes=[size] * images,
            scale_factors=[],
            paths=[],
            broken=[],
        )
        buffers = [buffer.clone() for buffer in self.detector.buffers()]
        try:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                self._accumulate([black] * self.cfg.train.accumulate)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, before in zip(self.detector.buffers(), buffers):
                buffer.copy_(before)  # in place: CUDA graphs read this memory

    def checkpoint_state(self) -> dict[str, dict | None]:
        """Return the fields `model`, `optimizer`, `scaler` and `ema` of a Checkpoint."""
        return {
            "model": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() or None,
            "ema": None if self.ema is None else self.ema.module.state_dict(),
        }

    def load(self, checkpoint: Checkpoint, path: Path) -> None:
        """Restore optimiser, loss scale and EMA from the checkpoint in `path`; the detector has its weights already.

        Raises UserError if they are not those of this run.
        """
        try:
            self.optimizer.load_state_dict(checkpoint.optimizer)
            for parameter, state in self.optimizer.state.items():
                if any(value.shape not in ((), parameter.shape) for value in state.values()):
                    raise ValueError("momenta of other shapes")
            if checkpoint.scaler is not None:
                self.scaler.load_state_dict(checkpoint.scaler)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: its optimiser state does not fit ({error})") from None
        if self.ema is not None:
            load_weights(self.ema.module, checkpoint.ema or {}, f"the EMA in {path}")
            self.ema.updates = checkpoint.iteration
