"""The ranks of a job that torchrun started, one for each GPU: process group, collectives, errors of one rank or of all.

Without torchrun there is one rank, and everything here does nothing. `all_reduce_mean` needs no torch.distributed.
"""

import os
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from dwtriton.core.errors import RunError, UserError, cause_of_failure

GLOO_SHUTDOWN_SECONDS = 0.2  # a gloo thread that frees a tensor while Python shuts down aborts the process


def is_distributed() -> bool:
    """Return whether this process belongs to a process group; also where PyTorch has no torch.distributed."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Return the rank of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks in the job."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is rank 0, which writes and prints for the job."""
    return rank() == 0


def under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return distributed.is_torchelastic_launched()


@contextmanager
def process_group(store: "distributed.Store | None" = None) -> Iterator[None]:
    """Join the process group of the job, on this rank's GPU if there is one, and leave it at the end.

    `store` replaces torchrun's own for the rendezvous. Raises UserError if a machine has fewer GPUs than ranks, and
    RunError if another rank has ended.
    """
    if not under_torchrun():
        yield
        return
    ranks_here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if ranks_here > gpus > 0:
        raise_on_main(f"torchrun started {ranks_here} processes on a machine with {gpus} GPUs: --nproc-per-node={gpus}")
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            store=store,
            rank=int(os.environ["RANK"]) if store else -1,
            world_size=int(os.environ["WORLD_SIZE"]) if store else -1,
        )
    except RuntimeError as error:  # of gloo, NCCL or the store
        cause = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise RunError(f"this rank cannot join the others; torchrun's report says how they ended ({cause})") from error
    try:
        yield
    finally:
        distributed.destroy_process_group()
        time.sleep(GLOO_SHUTDOWN_SECONDS)


def raise_on_main(problem: str) -> None:
    """Raise UserError on rank 0 and SystemExit on the others: for a problem that every rank finds by itself."""
    raise UserError(problem) if os.environ.get("RANK", "0") == "0" else SystemExit(2)


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """End the job if any rank raises a UserError or RunError inside: the first reports it, the others exit silently.

    All ranks must enter. Inside, no rank may wait for another except in `main_process_first`.
    """
    error: UserError | RunError | None = None
    try:
        yield
    except (UserError, RunError) as raised:
        error = raised
    kinds = all_gather_object(type(error))
    fails = [kind is not type(None) for kind in kinds]
    if any(fails):
        first = fails.index(True)
        if error is None or rank() != first:
            raise SystemExit(2 if issubclass(kinds[first], UserError) else 1)
        raise error if all(fails) else type(error)(f"rank {rank()}: {error}")


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let rank 0 run the body first, then local rank 0 of every other machine, then the rest: they find its files.

    The machines need not share a disk.
    """
    turn = 0 if is_main() else 1 if os.environ["LOCAL_RANK"] == "0" else 2
    last_turn = 2 if distributed.is_initialized() else 0
    for _ in range(turn):
        distributed.barrier()
    try:
        yield
    finally:
        for _ in range(last_turn - turn):
            distributed.barrier()


def check_same(values: dict[str, Any], ignore: Container[str] = ()) -> None:
    """Raise UserError, reported by rank 0, unless `values` are equal on all ranks but for the keys in `ignore`."""
    everywhere = all_gather_object({key: value for key, value in values.items() if key not in ignore})
    first = everywhere[0]
    for number, other in enumerate(everywhere):
        pairs = {key: (first.get(key), other.get(key)) for key in sorted(first.keys() | other.keys())}
        differences = "; ".join(f"{key} is {one} and {two}" for key, (one, two) in pairs.items() if one != two)
        if differences:
            raise_on_main(
                f"ranks 0 and {number} disagree: {differences}. Start every rank with the same command, config file, "
                f"code and data, and with --out on a disk that all machines share"
            )


def all_gather_object(value: Any) -> list[Any]:
    """Return the values of all ranks, in their order, on every rank; they travel through main memory."""
    if not distributed.is_initialized():
        return [value]
    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def gather_object(value: Any) -> list[Any] | None:
    """Return the values of all ranks, in their order, on rank 0, and None on the others."""
    if not distributed.is_initialized():
        return [value]
    values = [None] * world_size() if is_main() else None
    distributed.gather_object(value, values)
    return values


def any_across_ranks(flag: bool) -> bool:
    """Return whether `flag` is true on any rank, without waiting for a GPU."""
    if not distributed.is_initialized():
        return flag
    raised = torch.tensor(int(flag))
    distributed.all_reduce(raised, distributed.ReduceOp.MAX)
    return bool(raised)


def all_reduce_mean(values: Tensor) -> Tensor:
    """Return the mean over all ranks, without waiting for the GPU."""
    if not is_distributed():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / world_size()


def broadcast_buffers(module: nn.Module) -> None:
    """Copy rank 0's buffers to all ranks: each has gathered batch-norm statistics of its own images."""
    if distributed.is_initialized():
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


class LostRankError(RunError):
    """Another rank has ended: the message names it. The error that it caused here is the `__cause__`."""


@contextmanager
def explain_lost_ranks() -> Iterator[None]:
    """Raise LostRankError where an error inside comes of a rank that has ended."""
    try:
        yield
    except Exception as error:
        own = cause_of_failure(error) or isinstance(error, torch.OutOfMemoryError)
        lost = _lost_ranks() if isinstance(error, RuntimeError) and not own else []
        if not lost and not isinstance(error, distributed.DistError):
            raise
        name = f"rank {lost[0]}" if lost else "another rank"
        raise LostRankError(f"rank {rank()} lost contact with {name}") from error


def _lost_ranks() -> list[int]:
    """Return the ranks whose connection to this one is closed, after a collective failed.

    gloo raises a bare RuntimeError when a peer ends. Its connections keep their state, so that sending to a lost rank
    fails at once; a message to a living rank is never received and does no harm, as the job ends.
    """
    lost = []
    for peer in set(range(world_size())) - {rank()}:
        try:
            distributed.isend(torch.zeros(1), peer)
        except RuntimeError:
            lost.append(peer)
    return lost
