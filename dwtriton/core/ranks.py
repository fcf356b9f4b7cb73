"""The processes of one job: torchrun starts them, one for each GPU; here they meet, agree and speak with one voice.

Without torchrun there is one process, and everything here does nothing.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from dwtriton.config.schema import Config, flatten
from dwtriton.core.errors import UserError

GLOO_SHUTDOWN_SECONDS = 0.2  # seconds: a thread of gloo that frees a tensor while Python shuts down aborts the process
MAY_DIFFER = {"data.root", "data.workers"}  # between the machines of a job


def rank() -> int:
    """Number of this process in the job, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes in the job."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and reports for all."""
    return rank() == 0


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return distributed.is_torchelastic_launched()


def restarted() -> bool:
    """Whether torchrun (--max-restarts) started the job again after one of its processes had died.

    Each machine's torchrun counts for itself, and one whose processes all lived does not count: any of them decides.
    """
    return any_across_ranks(_restarts() > 0)


@contextmanager
def process_group() -> Iterator[None]:
    """Join the job that torchrun started, on the GPU of this process where there is one, and leave it at the end.

    Raises UserError if a machine has fewer GPUs than processes, or if restarts cannot work as torchrun was started.
    """
    if not under_torchrun():
        yield
        return
    if problem := _problem():
        raise UserError(problem) if os.environ["RANK"] == "0" else SystemExit(2)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, **_meeting_place())
    try:
        yield
    finally:
        distributed.destroy_process_group()
        time.sleep(GLOO_SHUTDOWN_SECONDS)


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Let a UserError of any process end the job on all of them, told once.

    Every process enters with the others, and inside nothing waits for another but `main_process_first`.
    """
    error = None
    try:
        yield
    except UserError as raised:
        error = raised
    failed = [number for number, fails in enumerate(all_gather_object(error is not None)) if fails]
    if not failed:
        return
    if rank() != failed[0]:
        raise SystemExit(2)
    if len(failed) == world_size():
        raise error
    raise UserError(f"rank {rank()}: {error}") from error


@contextmanager
def main_process_first() -> Iterator[None]:
    """The first process goes first, then the first of every other machine, then the rest: who comes later finds files.

    What is made on the first's disk need not be made again, whether or not the machines share it.
    """
    place = 0 if is_main() else 1 if os.environ["LOCAL_RANK"] == "0" else 2
    turns = 2 if distributed.is_initialized() else 0
    for _ in range(place):
        distributed.barrier()
    try:
        yield
    finally:
        for _ in range(turns - place):
            distributed.barrier()


def check_same(values: dict[str, Any]) -> None:
    """Raise the same UserError on all processes, told by the first, unless `values` are equal on every one of them."""
    everywhere = all_gather_object(values)
    for number, others in enumerate(everywhere):
        keys = sorted(key for key in values.keys() | others.keys() if everywhere[0].get(key) != others.get(key))
        if keys and not is_main():
            raise SystemExit(2)
        if keys:
            differences = "; ".join(f"{key} is {values.get(key)} and {others.get(key)}" for key in keys)
            raise UserError(
                f"ranks 0 and {number} disagree: {differences}. Start every rank with the same command, config file, "
                f"code and data, and with --out on a disk that all machines share"
            )


def check_same_config(cfg: Config) -> None:
    """`check_same` for every value of a config that machines may not have each in its own way."""
    check_same({key: value for key, value in flatten(cfg).items() if key not in MAY_DIFFER})


def all_gather_object(value: Any) -> list[Any]:
    """The value of every process, in the order of ranks, on each of them. It travels through main memory."""
    if not distributed.is_initialized():
        return [value]
    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """The first process's value, on each of them."""
    return all_gather_object(value)[0]


def gather_object(value: Any) -> list[Any] | None:
    """The value of every process, in the order of ranks, on the first; None on the others."""
    if not distributed.is_initialized():
        return [value]
    values = [None] * world_size() if is_main() else None
    distributed.gather_object(value, values)
    return values


def any_across_ranks(flag: bool) -> bool:
    """Whether `flag` is true on some process. Does not wait for a GPU."""
    if not distributed.is_initialized():
        return flag
    raised = torch.tensor(int(flag))
    distributed.all_reduce(raised, distributed.ReduceOp.MAX)
    return bool(raised)


def all_reduce_mean(values: Tensor) -> Tensor:
    """Mean over the processes, a new tensor; on a GPU nothing waits for it."""
    if not distributed.is_initialized():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / world_size()


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers: statistics of batch norms, which each has gathered on its own."""
    if distributed.is_initialized():
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


def is_lost_contact(error: RuntimeError) -> bool:
    """Whether `error` is what an exchange ends with when another process of the job is gone."""
    return world_size() > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error))


def _problem() -> str | None:
    """What is wrong with the way torchrun was started."""
    processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if processes > gpus > 0:
        return f"torchrun started {processes} processes on a machine with {gpus} GPUs: --nproc-per-node={gpus}"
    machines, restarts = int(os.environ["GROUP_WORLD_SIZE"]), int(os.environ["TORCHELASTIC_MAX_RESTARTS"])
    if machines > 1 and restarts and _store_outlives_restarts():
        return "--max-restarts on several machines needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment"
    return None


def _meeting_place() -> dict[str, Any]:
    """Arguments of init_process_group after a restart: a part of torchrun's store that no dead process wrote to.

    PyTorch 2.11 hands restarted processes the store of those before them, with their addresses. How often it restarted,
    torchrun counts for each machine alone, so on several machines this number cannot name the part.
    """
    if not (_restarts() and _store_outlives_restarts()):
        return {}
    store = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    store = distributed.PrefixStore(f"restart {_restarts()}", store)
    return {"store": store, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}


def _restarts() -> int:
    """How often this machine's torchrun has started its processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def _store_outlives_restarts() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
