"""GPUs that kernels are compiled for where there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction


class Target(NamedTuple):
    """A GPU, and the resources that one program may use."""

    gpu: GPUTarget
    shared: int  # bytes of shared memory
    registers: int  # of 32 bits, for all threads together


TARGETS = {
    **{
        f"cuda:{arch}": Target(GPUTarget("cuda", arch, 32), kilobytes * 1024, 2**16)
        for arch, kilobytes in {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}.items()
    },
    **{f"hip:{arch}": Target(GPUTarget("hip", arch, 64), 64 * 1024, 2**17) for arch in ("gfx90a", "gfx942")},
}


@contextmanager
def compile_only(target: str, kernels: frozenset[str] | None = None) -> Iterator[list[tuple[str, CompiledKernel]]]:
    """Make launches of some kernels, or all, compile for a target, and run none.

    Yields the list to which they add (name, binary).
    """
    launch = JITFunction.run
    compiled = []

    def compile_kernel(kernel, *args, grid, warmup, **options):
        name = kernel.__name__.removesuffix("_kernel")
        if kernels is not None and name not in kernels:
            return
        try:
            binary = launch(kernel, *args, grid=grid, warmup=True, **options)
        except Exception as error:  # of many types, some of which cannot be pickled
            raise RuntimeError(f"{target}: {kernel.__name__} with {options} does not compile: {error}") from None
        compiled.append((name + ("_many" if options.get("MANY") else ""), binary))

    gpu = TARGETS[target].gpu
    with (
        mock.patch.object(JITFunction, "run", compile_kernel),
        mock.patch.object(triton.runtime.driver, "_active", _AbsentDriver(gpu)),
        mock.patch.object(torch.version, "hip", "of an AMD GPU's PyTorch" if gpu.backend == "hip" else None),
    ):
        yield compiled


class _AbsentDriver:
    """The part of a GPU's driver that Triton uses to compile. Binaries are cached by device: it is the target."""

    def __init__(self, gpu: GPUTarget):
        self.get_current_target = self.get_current_device = lambda: gpu

    def get_current_stream(self, _) -> int:
        return 0
