"""Losses and weights that are not finite: found before a checkpoint is written, and reported with their images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from dwtriton.core import ranks
from dwtriton.core.errors import RunError
from dwtriton.data.batch import Batch
from dwtriton.train.step import StepLosses


class NonFiniteLossError(RunError):
    """A loss or weight is NaN or infinite: names it, the iteration and the images."""


class PendingStep(NamedTuple):
    """An optimiser step whose losses have not been read from the device yet."""

    iteration: int  # from 1
    epoch: int  # from 1
    lr: float
    losses: StepLosses
    micro_batches: Sequence[Batch]

    def read(self, last_checkpoint: Path) -> dict[str, float]:
        """Return the losses by name. Raises NonFiniteLossError, on all ranks, unless they are finite."""
        losses = dict(zip(self.losses.names, self.losses.mean.read().tolist()))
        bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        if bad:
            finite = self.losses.own.read().isfinite().all(1).tolist()
            suspects = [batch for batch, good in zip(self.micro_batches, finite) if not good]
            raise self.error(" and ".join(bad), suspects, last_checkpoint)
        return losses

    def error(self, problem: str, suspects: Sequence[Batch], last_checkpoint: Path) -> NonFiniteLossError:
        """Return the error that names the images of the suspected micro-batches of all ranks."""
        own = [f"{i} ({path})" for batch in suspects for i, path in zip(batch.image_ids, batch.paths)]
        images = ", ".join(image for of_rank in ranks.all_gather_object(own) for image in of_rank)
        exists = last_checkpoint.exists()
        kept = f"{last_checkpoint} is the last good checkpoint" if exists else "there was no checkpoint yet"
        return NonFiniteLossError(
            f"{problem} at iteration {self.iteration}, epoch {self.epoch}; images: {images}. No checkpoint was written "
            f"since, {kept}. Start again with a lower optimizer.lr, or look at these images"
        )


def check_weights(model: nn.Module, step: PendingStep | None, started_from: str, last_checkpoint: Path) -> None:
    """Raise NonFiniteLossError unless all tensors of the model are finite; `step` is the last one, if any was done."""
    bad = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if bad and step is None:
        raise NonFiniteLossError(f"{bad[0]} is not finite before any step: look at {started_from}")
    if bad:
        raise step.error(f"{bad[0]} is not finite after its update", step.micro_batches, last_checkpoint)
