"""Registers, spills, shared memory, wide loads and stores, and instructions of the compiled kernels; needs no GPU.

    python -m benchmarks.binaries --targets cuda:90 hip:gfx942 --dtypes bfloat16
    python -m benchmarks.binaries --all

prints a table of the default configs, with --all of the whole tuning space, and fails if a binary spills or does not
fit. The kernels' own launchers are called on small CPU tensors, so that each is compiled with the types and alignments
that a launch infers. Of the dense passes a second table shows how many instructions an entry of the logits takes: where
no score is high, where a tile is done again by exact formulas, and on average over generated logits.
"""

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import product, zip_longest
from multiprocessing import get_context
from typing import NamedTuple
from unittest import mock

import torch
import triton
from rich.console import Console
from rich.table import Table

from benchmarks import disassembly
from benchmarks.disassembly import Code
from benchmarks.high_scores import LOGITS, share_of_tiles
from benchmarks.targets import TARGETS, compile_only
from dwtriton.console.cli import run
from dwtriton.core.errors import UserError
from dwtriton.core.points import STRIDES
from dwtriton.kernels import dual_weights, ops
from dwtriton.kernels.configs import Config, DenseConfig, KernelConfigs, default_configs, search_space
from dwtriton.kernels.dense import HIGH_CLASSES
from dwtriton.kernels.inputs import read_boxes, read_pyramid
from dwtriton.kernels.ops import backward_pass, forward_pass
from dwtriton.kernels.trial import LAYOUTS, Setting, make_case

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DENSE = ("dense_forward", "dense_backward")
WIDTH = 220  # of tables, in characters


class Job(NamedTuple):
    """Kernels for one target, one kind of input and one config each."""

    target: str
    setting: Setting
    configs: KernelConfigs
    kernels: frozenset[str] | None = None  # by name; None: all


class Binary(NamedTuple):
    """One compiled kernel."""

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
    code: Code | None  # of a dense pass
    rows: tuple[int, ...] = ()  # neighbouring bytes of logits that a warp loads or stores at once, in a dense pass

    @property
    def name(self) -> str:
        config = "" if self.config is None else f" {_label(self.config)}"
        return f"{self.target} {self.dtype} {self.layout} C={self.classes}: {self.kernel}{config}"

    @property
    def each(self) -> tuple[float, float] | None:
        """Instructions an entry of the logits where no score is high, and the most if all tiles are done twice.

        None if classes are read in a loop, whose turns cannot be told from those of the loop over high scores.
        """
        if not self.code or not self.code.shortest or self.config.steps(self.classes) > 1:
            return None
        entries = self.config.points * self.config.tiles * self.classes / (32 * self.warps)
        return self.code.shortest / entries, self.code.longest / entries

    def executed(self, logits: str) -> tuple[float, float]:
        """Share of tiles that are done twice, and instructions an entry, for generated logits of a batch."""
        setting = Setting(DTYPES[self.dtype], self.layout, self.classes, size=(800, 1344), batch=16, boxes=1)
        share = share_of_tiles(setting, logits, self.kernel, self.config.points)
        low, high = self.each
        return share, low + share * (high - low)

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


def default_job(
    target: str, dtype: str, layout: str = "channels_last", classes: int = 80, strides: tuple[int, ...] = STRIDES
) -> Job:
    """Return the job of the default configs."""
    setting = Setting(DTYPES[dtype], layout, classes, size=(64, 96), batch=2, boxes=3, strides=strides)
    return Job(target, setting, default_configs(setting.key()))


def dense_job(*inputs: str | int) -> Job:
    """Return the same for the dense passes alone, which depend on dtype and number of classes most."""
    return default_job(*inputs)._replace(kernels=frozenset(DENSE))


def tuning_jobs(target: str, dtype: str, layout: str = "channels_last", classes: int = 80) -> list[Job]:
    """Return the jobs of the whole tuning space, the default configs and kernels that are not tuned first."""
    default = default_job(target, dtype, layout, classes)
    jobs = [default]
    for row in list(zip_longest(*search_space(default.setting.key()).values()))[1:]:
        configs = {kernel: config for kernel, config in zip(KernelConfigs._fields, row) if config}
        jobs.append(default._replace(configs=default.configs._replace(**configs), kernels=frozenset(configs)))
    return jobs


def launch_all(setting: Setting, configs: KernelConfigs) -> None:
    """Launch every kernel."""
    case = make_case(setting, "cpu")
    pyramid, boxes = read_pyramid(case.outputs, setting.strides), read_boxes(case.targets)
    *_, poison, table, touching = forward_pass(pyramid, boxes, True, configs)
    ones = torch.ones(3)
    backward_pass(pyramid, boxes.offsets, table, touching, poison, ones, ones.unbind(), True, configs)
    with mock.patch.object(ops, "lookup", return_value=configs):
        dual_weights(case.outputs, case.targets, setting.strides, True)


def compile_job(job: Job) -> list[Binary]:
    """Return the binaries of a job."""
    target, setting, configs, kernels = job
    with compile_only(target, kernels) as compiled:
        launch_all(setting, configs)
    inputs = (target, str(setting.dtype).removeprefix("torch."), setting.layout, setting.classes)
    binaries = {}
    for name, kernel in compiled:
        if name in binaries:  # for the assigner
            continue
        config, warps = configs._asdict().get(name), kernel.metadata.num_warps
        binary = Binary(*inputs, name, config, warps, *disassembly.resources(kernel), kernel.metadata.shared, None)
        if isinstance(config, DenseConfig):
            turns = -(-setting.classes // min(config.classes, HIGH_CLASSES))
            tile = config.points, config.classes
            rows = disassembly.row_bytes(kernel, tile, setting.dtype.itemsize)
            binary = binary._replace(code=disassembly.code(kernel, turns), rows=tuple(sorted(rows)))
        binaries[name] = binary
    return list(binaries.values())


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


def show(binaries: Iterable[Binary], console: Console) -> None:
    """Print binaries as a table."""
    table = Table("target", "dtype", "layout", "C", "kernel", "config", title="Compiled kernels")
    for heading in ("registers", "stack", "shared", "instructions", "wide loads", "wide stores", "bytes of a row"):
        table.add_column(heading, justify="right")
    for binary in binaries:
        config = f"{binary.warps} warps" if binary.config is None else _label(binary.config)
        code = binary.code
        counts = (code.instructions, code.wide_loads, code.wide_stores, min(binary.rows, default="")) if code else ()
        table.add_row(*map(str, (*binary[:5], config, binary.registers, binary.stack, binary.shared, *counts)))
    console.print(table)


def show_executed(binaries: Iterable[Binary], console: Console) -> None:
    """Print the instructions of dense passes that are spent on an entry of the logits, a warp's for 32 of them."""
    table = Table("target", "dtype", "layout", "C", "kernel")
    table.title = "Instructions an entry: of a tile, and on average over the tiles of 16 images of 800x1344, at most"
    for heading in ("done once", "done twice", *(f"logits of mean {mean:g}" for mean, _ in LOGITS.values())):
        table.add_column(heading, justify="right")
    for binary in binaries:
        if binary.each:
            averages = (f"{each:.2f} ({100 * share:.2g}% twice)" for share, each in map(binary.executed, LOGITS))
            table.add_row(*map(str, binary[:5]), *(f"{each:.1f}" for each in binary.each), *averages)
    console.print(table)


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
    console = Console(width=WIDTH)
    show(binaries, console)
    show_executed(binaries, console)
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
