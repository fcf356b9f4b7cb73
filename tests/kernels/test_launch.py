"""Launches by kept binaries and plain addresses, on a GPU that is only pretended."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from dwtriton.kernels import launch as module
from dwtriton.kernels.launch import Levels, launch


class OnGpu(torch.Tensor):
    is_cuda = True
    device = torch.device("cuda", 0)


class Kernel:
    """Takes three arguments, then two constants."""

    arg_names = ("levels", "out", "count", "SPANS", "BLOCK")

    def __init__(self):
        self.fn, self.compiled, self.plain = self, 0, []

    def __getitem__(self, grid):
        def front_door(*arguments, **constants):
            assert type(arguments[0]) is tuple  # of a type that Triton knows
            self.compiled += 1
            return SimpleNamespace(run=lambda *given: self.plain.append(given), function="f", packed_metadata="m")

        return front_door


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    monkeypatch.setattr(module, "INTERPRETED", False)
    monkeypatch.setattr(module, "_kept", {})
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 77, raising=False)


def on_gpu(size: int, dtype=torch.float32, shift: int = 0) -> torch.Tensor:
    return torch.zeros(size + shift, dtype=dtype)[shift:].as_subclass(OnGpu)


def test_the_first_launch_goes_through_the_front_door_and_others_by_addresses():
    kernel, levels, out = Kernel(), Levels([on_gpu(4), on_gpu(8)]), on_gpu(2)
    for count in (5, 9):
        launch(kernel, (3,), levels, out, count, BLOCK=16, SPANS=(4, 2), num_warps=1)
    assert kernel.compiled == 1
    addresses = tuple(level.data_ptr() for level in levels), out.data_ptr()
    assert kernel.plain == [(3, 1, 1, 77, "f", "m", None, None, None, *addresses, 9, (4, 2), 16)]


def test_other_dtypes_constants_and_warps_are_other_binaries():
    kernel, out = Kernel(), on_gpu(2)
    for dtype, block, warps in (
        (torch.float32, 16, 1),
        (torch.bfloat16, 16, 1),
        (torch.float32, 8, 1),
        (torch.float32, 8, 2),
    ):
        for _ in range(2):
            launch(kernel, (1,), Levels([on_gpu(4, dtype)]), out, 1, SPANS=(1,), BLOCK=block, num_warps=warps)
    assert (kernel.compiled, len(kernel.plain)) == (4, 4)


def test_memory_that_is_not_aligned_always_goes_through_the_front_door():
    kernel = Kernel()
    for _ in range(3):
        launch(kernel, (1,), Levels([on_gpu(4, shift=1)]), on_gpu(2), 1, SPANS=(1,), BLOCK=16, num_warps=1)
    assert (kernel.compiled, kernel.plain) == (3, [])


def test_single_numbers_may_lie_anywhere():
    """Gradients of the losses are entries of one tensor."""
    kernel = Kernel()
    for number in on_gpu(3).unbind():
        launch(kernel, (1,), Levels([on_gpu(4)]), number, 1, SPANS=(1,), BLOCK=16, num_warps=1)
    assert (kernel.compiled, len(kernel.plain)) == (1, 2)


def test_launches_beside_others_are_joined_even_if_one_fails(monkeypatch):
    waited, beside = [], []
    side, main = (SimpleNamespace(wait_stream=waited.append, device=0) for _ in range(2))
    monkeypatch.setattr(module, "_side_stream", lambda index: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)

    def failing():
        with module.Beside(on_gpu(2)) as other, other.launches():
            beside.append(module._now.stream)
            raise MemoryError

    with pytest.raises(MemoryError):
        failing()
    assert beside == [side]
    assert module._now.stream is None
    assert waited == [main, side]
