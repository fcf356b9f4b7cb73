"""Time that the host takes for a call of the loss with its gradient by the kernels, without a GPU.

    python -m benchmarks.host

Launches go the way that they go on a GPU, up to the call of the driver, which is left out. So are streams.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from types import SimpleNamespace
from unittest import mock

import torch

from benchmarks.cases import Case, Size, make_case
from dwtriton import kernels
from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import STRIDES
from dwtriton.kernels import launch

CALLS = 300
BOXES = 7  # an image


class _Kept(dict):
    """Holds a binary for every launch, which does nothing and is counted."""

    def __init__(self):
        super().__init__()
        self.launches = 0
        self.binary = SimpleNamespace(run=self.run, function=None, packed_metadata=None)

    def get(self, key: tuple) -> SimpleNamespace:
        return self.binary

    def run(self, *_arguments: object) -> None:
        self.launches += 1


def _on_gpu(_device: torch.device) -> bool:
    return True


def _stream_of(_device: int | None) -> int:
    return 0


@contextmanager
def stubbed_launches() -> Iterator[_Kept]:
    """A context in which kernels are launched as on a GPU, on CPU tensors, and nothing runs."""
    kept = _Kept()
    with (
        mock.patch.object(launch, "on_gpu", new=_on_gpu),
        mock.patch.object(launch, "_kept", kept),
        mock.patch.object(torch._C, "_cuda_getCurrentRawStream", new=_stream_of, create=True),
    ):
        yield kept


def host_ms(calls: int = CALLS) -> tuple[float, int]:
    """Return the median ms of a call, two images of 800x1344 in bfloat16, and how many kernels it launches."""
    case = make_case(Size(), 2, BOXES, torch.bfloat16, torch.device("cpu"))
    times = []
    with stubbed_launches() as kept:
        for _ in range(calls):
            begin = time.perf_counter()
            _call(case)
            times.append(1e3 * (time.perf_counter() - begin))
    return median(times), kept.launches // calls


def _call(case: Case) -> tuple[torch.Tensor, ...]:
    losses = kernels.dual_weight_losses(HeadOutputs(*case.inputs), case.packed, STRIDES, True, None)
    return torch.autograd.grad(sum(losses), case.leaves())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=CALLS, help="of which the median counts (default: %(default)s)")
    ms, launches = host_ms(parser.parse_args(arguments).calls)
    print(f"loss and gradient take {ms:.2f} ms of the host for {launches} launches, without the driver's part")


if __name__ == "__main__":
    main()
