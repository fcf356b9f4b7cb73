"""Which images form a batch, on which rank and in which micro-batch."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from dwtriton.core.errors import UserError
from dwtriton.data.buckets import Size
from dwtriton.data.coco import SampleRequest


class OrientedBatchSampler(Sampler[list[SampleRequest]]):
    """Micro-batches of one rank, in an order drawn from (seed, epoch).

    The images of a batch are either all landscape or all not. An epoch has every index at least once; the last batch of
    an orientation is filled up from that orientation's beginning. The seed of a request depends on (seed, epoch,
    position) alone: not on workers, nor on where a run was resumed.

    Each batch is split over `world_size` ranks and `accumulate` micro-batches; together they always form the same
    batch. `padded_size` gives the (h, w) that all parts of a batch are padded to.
    Raises UserError if the batch does not divide into equal parts.
    """

    def __init__(
        self,
        landscape: Sequence[bool] | np.ndarray,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        padded_size: Callable[[list[SampleRequest]], Size] | None = None,
    ) -> None:
        if batch_size % (world_size * accumulate):
            raise UserError(
                f"data.batch_size = {batch_size} (images in one optimiser step, over all ranks) does not divide "
                f"into {world_size} ranks x train.accumulate = {accumulate}: change one of the three"
            )
        self.groups = [np.flatnonzero(np.asarray(landscape) == wide) for wide in (False, True)]
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.padded_size = padded_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch to iterate, and its optimiser step to start with."""
        self.epoch = epoch
        self.start = start

    @property
    def steps(self) -> int:
        """Optimiser steps in a whole epoch, wherever it is started."""
        return sum(-(-len(group) // self.batch_size) for group in self.groups)

    def __len__(self) -> int:
        """Micro-batches of this rank in a whole epoch, wherever it is started."""
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        size = self.batch_size // (self.world_size * self.accumulate)
        for batch in self.global_batches():
            if self.padded_size is not None:
                padded = self.padded_size(batch)
                batch = [request._replace(padded=padded) for request in batch]
            for begin in range(self.rank * size, self.batch_size, self.world_size * size):
                yield batch[begin : begin + size]

    def global_batches(self) -> Iterator[list[SampleRequest]]:
        """Batches of all ranks together, from the chosen step of the epoch on."""
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = rng.permutation(np.concatenate([self._batches(group, rng) for group in self.groups]))  # [N, B]
        seeds = rng.integers(2**63, size=batches.shape)  # [N, B]
        for batch in np.stack([batches, seeds], -1)[self.start :]:  # [B, 2]
            yield [SampleRequest(index, seed) for index, seed in batch.tolist()]

    def _batches(self, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        count = -(-len(group) // self.batch_size)
        return np.resize(rng.permutation(group), (count, self.batch_size))  # repeats from the beginning to fill up
