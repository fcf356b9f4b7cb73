"""One optimiser step: forward and backward passes on every process, then the same update of the weights on each."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dwtriton.checkpoints.checkpoint import Checkpoint
from dwtriton.config.schema import Config
from dwtriton.core import ranks
from dwtriton.core.targets import pack_targets
from dwtriton.core.transfer import AsyncHostCopy, to_device
from dwtriton.data.batching import Batch
from dwtriton.model.detector import DualWeightDetector
from dwtriton.train.compile import TrainingNetwork, compile_network
from dwtriton.train.ema import EMA
from dwtriton.train.optimizer import build_optimizer, set_learning_rate

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class StepLosses(NamedTuple):
    """Losses of one optimiser step, on their way from the device. `loss` is the sum that is minimised, the others its
    terms.
    """

    names: list[str]
    mean: AsyncHostCopy  # [len(names)], over all passes of all processes
    own: AsyncHostCopy  # [passes, len(names)], of this process


class TrainStep:
    """Detector, optimiser, loss scale and moving average: all that a step changes.

    The batch of a step is shared out over the processes and, with `train.accumulate`, over several passes of each. The
    gradient is the mean over passes and processes, and all images are padded to one size, so that the number of
    processes changes nothing but rounding. Losses are normalised within a pass, over all processes (spec, section
    Normalisers): passes one after another are not quite the batch at once. On a GPU the host waits for nothing.
    """

    def __init__(
        self, detector: DualWeightDetector, cfg: Config, device: torch.device, capacity: int | None = None
    ) -> None:
        """`detector` lies on `device`; `train.precision` and `train.compile` are settled, not auto.

        `capacity`: the most boxes that a pass can have; under torch.compile targets take that many rows.
        """
        self.detector, self.cfg, self.device = detector, cfg, device
        self.capacity = None if cfg.train.compile == "off" else capacity
        self.network: nn.Module = TrainingNetwork(detector, cfg.data)
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

    def compile_ahead(self, images: int) -> Iterator[None]:
        """Compile for passes of so many images, one bucket at a time.

        At every yield, and after an error, all that a step depends on is as it was before.
        """
        for height, width in self.cfg.data.buckets:
            black = torch.zeros(images, height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)  # laid out as batches
            no_boxes = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
            with self._without_trace():
                for _ in range(2):  # the second time, CUDA graphs are recorded
                    self._begin_step()
                    losses = self._losses(black, [(height, width)] * images, [no_boxes] * images)
                    self.scaler.scale(sum(losses.values())).backward()
            yield

    @contextmanager
    def _without_trace(self) -> Iterator[None]:
        """Undo what passes inside do to buffers (statistics of batch norms), gradients and random numbers."""
        buffers = {name: buffer.clone() for name, buffer in self.detector.named_buffers()}
        try:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                yield
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            for name, buffer in self.detector.named_buffers():
                buffer.copy_(buffers[name])  # in place: a CUDA graph reads it where it lies

    def eval_detector(self) -> DualWeightDetector:
        """The detector to evaluate, the same on every process: the moving average, if there is one."""
        detector = self.detector if self.ema is None else self.ema.module
        if not self.cfg.backbone.frozen_statistics:
            ranks.broadcast_buffers(detector)
        return detector

    def __call__(self, batches: list[Batch], lr_factor: float) -> tuple[float, StepLosses]:
        """Update the weights by this process's batches of the step; returns the learning rate and the losses.

        Under float16 a step whose gradients overflow changes the loss scale and no weight; the moving average takes the
        same weights in once more.
        """
        lr = set_learning_rate(self.optimizer, lr_factor)
        self._begin_step()
        own = []
        for batch in batches:
            with self._without_exchange() if batch is not batches[-1] else nullcontext():
                losses = self._losses(batch.images, batch.image_sizes, batch.targets)
                total = sum(losses.values())
                self.scaler.scale(total / len(batches)).backward()
            own.append(torch.stack([total, *losses.values()]).detach())
        if self.cfg.optimizer.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.detector.parameters(), self.cfg.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.detector)
        own = torch.stack(own)
        return lr, StepLosses(["loss", *losses], AsyncHostCopy(ranks.all_reduce_mean(own.mean(0))), AsyncHostCopy(own))

    def checkpoint_state(self) -> dict[str, dict | None]:
        """The fields `model`, `optimizer`, `scaler` and `ema` of a Checkpoint."""
        return {
            "model": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() or None,
            "ema": None if self.ema is None else self.ema.module.state_dict(),
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Take over optimiser, loss scale and moving average from a checkpoint whose weights the detector has."""
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if checkpoint.scaler is not None:
            self.scaler.load_state_dict(checkpoint.scaler)
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint.ema)
            self.ema.updates = checkpoint.iteration

    def _begin_step(self) -> None:
        """Forget the gradients of the step before; CUDA graphs may then write where they were."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.cfg.train.compile != "off":
            torch.compiler.cudagraph_mark_step_begin()

    def _losses(
        self, images: Tensor, image_sizes: list[tuple[int, int]], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The losses of one pass, from the fields of its batch."""
        images = images.to(self.device, non_blocking=True)
        sizes = to_device(torch.tensor(image_sizes), self.device)
        packed = pack_targets(targets, self.device, self.capacity)
        dtype = AUTOCAST.get(self.cfg.train.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.network(images, sizes, packed)

    def _without_exchange(self) -> AbstractContextManager:
        """Gradients are added up within the process, and exchanged in the last pass only."""
        return self.network.no_sync() if ranks.world_size() > 1 else nullcontext()
