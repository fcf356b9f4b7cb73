"""Launches that cost the host little: compiled kernels are kept, and given plain addresses instead of tensors."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property, reduce
from operator import or_

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1 was set: kernels run slowly, on CPU tensors
LEAST_LIMITED = 80  # compute capability from which on a kernel's limit of registers holds
ALL_REGISTERS = 255  # that a thread can have
ALIGNED = 16  # bytes; Triton compiles another binary where memory begins elsewhere

_kept: dict[tuple, CompiledKernel] = {}
_now = threading.local()  # its `stream` is where launches go, where it is set; autograd runs in threads of its own


class Levels(tuple[Tensor, ...]):
    """Tensors of one dtype, one for each level, as an argument of many launches: their addresses are asked for once."""

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        return tuple([level.data_ptr() for level in self])

    @cached_property
    def alignment(self) -> int:
        """The addresses' bits, of which the lowest that is set says how well all are aligned."""
        return reduce(or_, self.addresses)


def launch(
    kernel: JITFunction,
    grid: tuple[int, ...],
    *arguments: object,
    num_warps: int,
    maxnreg: int | None = None,
    **constants,
) -> None:
    """`kernel[grid](*arguments, **constants)` on the device of the arguments, which is the current one.

    Arguments are tensors, `Levels`, numbers, and tuples of numbers, one for each level. Numbers are not specialised.
    Kernels are compiled without fusion, for which see `formulas.py`.
    """
    values, kinds, bits = [], [], 0
    for argument in arguments:
        if isinstance(argument, Tensor):
            tensor, value = argument, argument.data_ptr()
            kinds.append(tensor.dtype)
            if tensor.ndim:  # kernels do not specialise pointers to single numbers
                bits |= value
        elif isinstance(argument, Levels):
            tensor, value = argument[0], argument.addresses
            kinds.append(tensor.dtype)
            bits |= argument.alignment
        else:
            value = argument
            kinds.append(len(argument) if isinstance(argument, tuple) else None)
        values.append(value)
    device = tensor.device
    if not on_gpu(device):
        _run(kernel, grid, arguments, constants, num_warps, maxnreg)
        return
    beside = getattr(_now, "stream", None)
    key = (kernel.fn, device.index, num_warps, *kinds, *constants.values())
    compiled = None if bits % ALIGNED else _kept.get(key)
    if compiled is None:
        with torch.cuda.stream(beside):  # None: no other than the current one
            compiled = _run(kernel, grid, arguments, constants, num_warps, maxnreg)
        if bits % ALIGNED == 0 and torch.version.hip is None:  # AMD's compiler looks at the size of memory, too
            _kept[key] = compiled
        return
    stream = torch._C._cuda_getCurrentRawStream(device.index) if beside is None else beside.cuda_stream
    rest = [constants[name] for name in kernel.arg_names[len(arguments) :]]
    sizes = grid + (1,) * (3 - len(grid))
    compiled.run(*sizes, stream, compiled.function, compiled.packed_metadata, None, None, None, *values, *rest)


def _run(
    kernel: JITFunction, grid: tuple[int, ...], arguments: tuple, constants: dict, num_warps: int, maxnreg: int | None
) -> CompiledKernel | None:
    """Launch by Triton's own means, to which `Levels` are tuples; returns the binary, None from the interpreter."""
    plain = (tuple(argument) if isinstance(argument, Levels) else argument for argument in arguments)
    return kernel[grid](*plain, **constants, **_options(num_warps, maxnreg))


def on_gpu(device: torch.device) -> bool:
    """Whether kernels run as compiled binaries, which take plain addresses."""
    return device.type == "cuda" and not INTERPRETED


def _options(num_warps: int, maxnreg: int | None) -> dict[str, int | bool]:
    """What a kernel is compiled with; older GPUs need more registers for the same kernel, and may have them all."""
    options = {"num_warps": num_warps, "enable_fp_fusion": False}
    if maxnreg is not None and not INTERPRETED:
        target = triton.runtime.driver.active.get_current_target()
        if target.backend == "cuda":
            options["maxnreg"] = maxnreg if target.arch >= LEAST_LIMITED else ALL_REGISTERS
    return options


class Beside:
    """A context in which some launches run beside others, on a GPU, and if there are rows at all.

    It ends when all are done, as far as later launches are concerned. Memory still belongs to the current stream: what
    is used beside must be kept until then, and what is read must have been made before. Launch beside first: it may
    otherwise be given memory that the current stream still uses.
    """

    def __init__(self, rows: Tensor):
        self.stream = _side_stream(rows.device.index) if rows.is_cuda and len(rows) else None

    def __enter__(self) -> "Beside":
        if self.stream is not None:
            self.main = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(self.main)
        return self

    def __exit__(self, *_) -> None:
        if self.stream is not None:
            self.main.wait_stream(self.stream)

    @contextmanager
    def launches(self) -> Iterator[None]:
        """What is launched here runs beside what is launched behind."""
        _now.stream = self.stream
        try:
            yield
        finally:
            _now.stream = None


@cache
def _side_stream(index: int) -> torch.cuda.Stream:
    """Of high priority: its kernels are short, those beside it long."""
    return torch.cuda.Stream(index, priority=-1)
