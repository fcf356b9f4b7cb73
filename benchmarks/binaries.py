"""Registers, spills, shared memory, wide loads and stores of the compiled kernels; needs no GPU.

    python -m benchmarks.binaries --targets cuda:90 hip:gfx942 --dtypes bfloat16
    python -m benchmarks.binaries --all

prints a table of the default configs, with --all of the whole tuning space, and fails if a binary spills or does not
fit. Instructions an entry are those of a dense pass on the way that ordinary logits take. The kernels' own launchers
are called on small CPU tensors, so that each is compiled with the types and alignments that a launch infers. NVIDIA
binaries are read with cuobjdump of Triton's wheel, AMD ones from their assembly.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import product, zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from dwtriton.console.cli import run
from dwtriton.core.errors import UserError
from dwtriton.core.points import STRIDES
from dwtriton.kernels import dual_weights
from dwtriton.kernels.inputs import read_boxes, read_pyramid
from dwtriton.kernels.ops import backward_pass, forward_pass
from dwtriton.kernels.trial import LAYOUTS, Setting, make_case
from dwtriton.kernels.tuning import Config, DenseConfig, KernelConfigs, default_configs, search_space

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WIDE = 16  # bytes, the most that a thread loads or stores at once


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


class Job(NamedTuple):
    """All kernels for one target, one kind of input and one config each."""

    target: str
    setting: Setting
    configs: KernelConfigs


class Binary(NamedTuple):
    """One compiled kernel. Counts from the disassembly are None where it was not disassembled."""

    target: str
    dtype: str
    layout: str
    classes: int
    kernel: str
    config: Config | None  # None: the kernel has none
    warps: int
    registers: int  # a thread
    stack: int  # bytes a thread of stack and local memory, where registers spill
    shared: int  # bytes
    instructions: int | None
    each: float | None  # instructions an entry of the logits, where no score is high
    wide_loads: int | None  # from global memory
    wide_stores: int | None

    @property
    def name(self) -> str:
        config = "" if self.config is None else f" {_label(self.config)}"
        return f"{self.target} {self.dtype} {self.layout} C={self.classes}: {self.kernel}{config}"

    def problems(self) -> list[str]:
        """Return why this binary would run slowly or not at all."""
        gpu, shared, registers = TARGETS[self.target]
        threads = self.warps * gpu.warp_size
        found = []
        if self.stack:
            found.append(f"{self.name} puts {self.stack} bytes a thread into stack or local memory")
        if self.shared > shared:
            found.append(f"{self.name} needs {self.shared} bytes of shared memory, of {shared}")
        if self.registers * threads > registers:
            found.append(f"{self.name} needs {self.registers * threads} registers, of {registers}")
        return found


def default_job(target: str, dtype: str, layout: str = "channels_last", classes: int = 80) -> Job:
    """Return the job of the default configs."""
    setting = Setting(DTYPES[dtype], layout, classes, size=(64, 96), batch=2, boxes=3)
    return Job(target, setting, default_configs(classes, DTYPES[dtype].itemsize))


def tuning_jobs(target: str, dtype: str, layout: str = "channels_last", classes: int = 80) -> list[Job]:
    """Return the jobs of the whole tuning space, the default configs first."""
    default = default_job(target, dtype, layout, classes)
    rows = zip_longest(*search_space(classes, DTYPES[dtype].itemsize).values())
    return [
        default._replace(configs=KernelConfigs(*(config or other for config, other in zip(row, default.configs))))
        for row in rows
    ]


@contextmanager
def compile_only(target: str) -> Iterator[list[tuple[str, CompiledKernel]]]:
    """Make launches compile for a target and run nothing; yield the list to which they add (name, binary)."""
    launch = JITFunction.run
    compiled = []

    def compile_kernel(kernel, *args, grid, warmup, **options):
        try:
            name = kernel.__name__.removesuffix("_kernel") + ("_many" if options.get("MANY") else "")
            compiled.append((name, launch(kernel, *args, grid=grid, warmup=True, **options)))
        except Exception as error:  # of many types, some of which cannot be pickled
            raise RuntimeError(f"{target}: {kernel.__name__} with {options} does not compile: {error}") from None

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


def launch_all(setting: Setting, configs: KernelConfigs) -> None:
    """Launch every kernel once; the assigner's with its default config."""
    case = make_case(setting, "cpu")
    pyramid, boxes = read_pyramid(case.outputs, STRIDES), read_boxes(case.targets)
    *_, poison, table = forward_pass(pyramid, boxes, True, configs)
    ones = torch.ones(3)
    backward_pass(pyramid, boxes.offsets, table, poison, ones, ones.unbind(), True, configs)
    dual_weights(case.outputs, case.targets, STRIDES, True)


def compile_job(job: Job) -> list[Binary]:
    """Return the binaries of a job. Dense passes are disassembled for default configs only, since it takes long."""
    target, setting, configs = job
    with compile_only(target) as compiled:
        launch_all(setting, configs)
    defaults = default_configs(setting.classes, setting.dtype.itemsize)
    config_of = configs._asdict()
    inputs = (target, str(setting.dtype).removeprefix("torch."), setting.layout, setting.classes)
    read = _read_nvidia if target.startswith("cuda") else _read_amd
    binaries = {}
    for name, kernel in compiled:
        config = config_of.get(name.removesuffix("_many"))
        dense = isinstance(config, DenseConfig) and config in defaults
        registers, stack, instructions, ordinary, *wide = read(kernel, disassemble=dense)
        entries = config.points * config.tiles * setting.classes / (32 * kernel.metadata.num_warps) if dense else 0
        counts = (instructions, round(ordinary / entries, 1) if ordinary else None, *wide)
        resources = (kernel.metadata.num_warps, registers, stack, kernel.metadata.shared)
        if name in binaries:  # the assigner's, of other configs
            continue
        binaries[name] = Binary(*inputs, name, config, *resources, *counts)
    return list(binaries.values())


def _read_nvidia(kernel: CompiledKernel, disassemble: bool) -> tuple[int | None, ...]:
    usage = _cuobjdump(kernel.asm["cubin"], "--dump-resource-usage")
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    if not disassemble:
        return registers, stack + local, *[None] * 4
    sass = _cuobjdump(kernel.asm["cubin"], "-sass")
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+([^;]+);", sass, re.MULTILINE)
    wide = (
        sum(re.match(rf"(@\S+ )?{name}\.E\S*\.128", line) is not None for _, line in lines) for name in ("LDG", "STG")
    )
    return registers, stack + local, len(lines), _shortest_path(lines), *wide


def _shortest_path(lines: list[tuple[str, str]]) -> int:
    """Instructions on the shortest way from the first to the last exit: where scores are high, dense passes go further.

    Only for kernels whose loops are unrolled but for those on the longer way.
    """
    index = {int(address, 16): number for number, (address, _) in enumerate(lines)}
    last = max(number for number, (_, line) in enumerate(lines) if re.match(r"(@\S+ )?EXIT", line))
    reached, steps = {0}, 1
    while last not in reached:
        following = set()
        for number in reached:
            branch = re.match(r"(@\S+ )?BRA (0x[0-9a-f]+)", lines[number][1])
            if branch:
                following.add(index[int(branch[2], 16)])
            if not branch or branch[1]:
                following.add(number + 1)
        reached, steps = following, steps + 1
    return steps


def _read_amd(kernel: CompiledKernel, disassemble: bool) -> tuple[int | None, ...]:
    """Read counts from assembly. Spilled vector registers count; spilled scalars go to vector registers and do not."""
    assembly = kernel.asm["amdgcn"]
    names = ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
    registers, private, spilled = (int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1]) for name in names)
    patterns = (r"^\t[a-z]\w+ ", r"\t(?:global|buffer)_load_dwordx4", r"\t(?:global|buffer)_store_dwordx4")
    counts = [len(re.findall(pattern, assembly, re.MULTILINE)) if disassemble else None for pattern in patterns]
    return registers, max(private, 4 * spilled), counts[0], None, *counts[1:]


@cache
def _cuobjdump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def compiler_pool(workers: int = 2) -> Iterator[Executor]:
    """Yield a pool of processes that compile, with an empty Triton cache that they share."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (folder,)) as pool,
    ):
        yield pool


def _start_worker(folder: str) -> None:
    triton.knobs.cache.dir = folder
    torch.set_num_threads(1)


def compile_all(jobs: Iterable[Job], pool: Executor) -> list[Binary]:
    """Compile all jobs; return their binaries without duplicates."""
    return list(dict.fromkeys(binary for binaries in pool.map(compile_job, jobs) for binary in binaries))


def show(binaries: Iterable[Binary]) -> None:
    """Print binaries as a table."""
    table = Table("target", "dtype", "layout", "C", "kernel", "config", title="Compiled kernels")
    for heading in ("registers", "stack", "shared", "instructions", "an entry", "wide loads", "wide stores"):
        table.add_column(heading, justify="right")
    for binary in binaries:
        counts = (binary.registers, binary.stack, binary.shared, *binary[-4:])
        config = f"{binary.warps} warps" if binary.config is None else _label(binary.config)
        table.add_row(*map(str, binary[:5]), config, *("" if count is None else str(count) for count in counts))
    Console(width=200).print(table)


def _label(config: Config) -> str:
    return ", ".join(f"{value} {name}" for name, value in config._asdict().items())


def main(arguments: list[str] | None = None) -> int:
    args = read_arguments(arguments)
    jobs_of = tuning_jobs if args.all else lambda *inputs: [default_job(*inputs)]
    jobs = [
        job for inputs in product(args.targets, args.dtypes, [args.layout], args.classes) for job in jobs_of(*inputs)
    ]
    with compiler_pool(args.workers) as pool:
        binaries = compile_all(jobs, pool)
    show(binaries)
    problems = [problem for binary in binaries for problem in binary.problems()]
    if problems:
        raise UserError("\n".join(problems))
    return 0


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--targets", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET", help="%(choices)s"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16", "float32"], help="of all inputs")
    parser.add_argument("--layout", choices=LAYOUTS, default="channels_last", help="of all inputs")
    parser.add_argument("--classes", nargs="+", type=int, default=[80], metavar="C")
    parser.add_argument("--all", action="store_true", help="the whole tuning space, not only the default configs")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
