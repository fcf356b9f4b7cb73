"""`python -m dwtriton.tune`: time the kernels' configs on this GPU and save the fastest."""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from dwtriton import cli
from dwtriton.cli import say
from dwtriton.errors import UserError
from dwtriton.files import make_folder
from dwtriton.kernels.trial import LAYOUTS, Setting, device_time, disagreement, kernel_calls, make_case
from dwtriton.kernels.tuning import (
    BagsConfig,
    Config,
    DenseConfig,
    KernelConfigs,
    cache_table,
    default_configs,
    read_table,
    search_space,
    write_table,
)

EXAMPLES = """\
  python -m dwtriton.tune                                      for 80 classes and images of 800x1344, under a minute
  python -m dwtriton.tune --classes 20 --size 640x640 --batch 32 --check
  python -m dwtriton.tune --dtype bfloat16 --layout channels_last contiguous --out tuned.json
  python -m dwtriton.tune --dry-run                            list what would be tried; needs no GPU"""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NOISE = 0.02  # a config must be faster than the default by more than timings differ from run to run
CHECKED_IMAGES = 2  # the truth takes float64


class Found(NamedTuple):
    """What a search found for a kernel; times in microseconds, inf for a config that does not run."""

    config: Config
    us: float
    default_us: float
    tried: int
    failed: int


def search(
    candidates: Sequence[Config],
    measure: Callable[[Config], float],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[], object] = lambda: None,
) -> Found:
    """Measure candidates in order, until the time is up, and take the fastest; the first is the default.

    `measure` gives microseconds, inf for a config that does not compile or run here. The default is always measured,
    and stays unless another is faster by more than `NOISE`. `progress` is called after each.
    Raises UserError if no candidate runs.
    """
    deadline = clock() + seconds
    times: dict[Config, float] = {}
    for config in candidates:
        if clock() >= deadline and min(times.values(), default=math.inf) < math.inf:
            break
        times[config] = measure(config)
        progress()
    default, best = candidates[0], min(times, key=times.__getitem__)
    if math.isinf(times[best]):
        raise UserError(f'none of {len(times)} configs runs on this GPU; use backend="torch" on it')
    if times[best] >= times[default] * (1 - NOISE):
        best = default
    return Found(best, times[best], times[default], len(times), sum(map(math.isinf, times.values())))


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command("dwtriton.tune", "Find the fastest configs of the kernels on this GPU.", EXAMPLES)
    parser.add_argument("--classes", metavar="C", type=int, default=80, help="of the logits (default: %(default)s)")
    parser.add_argument("--size", metavar="HxW", default="800x1344", help="padded images (default: %(default)s)")
    parser.add_argument("--batch", metavar="B", type=int, default=16, help="images (default: %(default)s)")
    parser.add_argument("--boxes", metavar="G", type=int, default=7, help="boxes an image (default: %(default)s)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="of the logits (default: all)")
    parser.add_argument(
        "--layout", nargs="+", choices=LAYOUTS, default=["channels_last"], help="(default: channels_last)"
    )
    parser.add_argument("--seconds", type=float, default=50, help="for the search in total (default: %(default)g)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="table to write or add to (default: the user's cache)")
    parser.add_argument(
        "--check", action="store_true", help="compare with the torch backend in float64, before and after"
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would be tried")
    return parser


def read_settings(arguments: argparse.Namespace) -> list[Setting]:
    """One for each dtype and layout. Raises UserError for an argument out of range."""
    size = cli.read_size(arguments.size)
    for name, least in (("classes", 1), ("batch", 1), ("boxes", 1), ("seconds", 0)):
        value = getattr(arguments, name)
        if not value >= least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    shape = arguments.classes, size, arguments.batch, arguments.boxes
    return [Setting(DTYPES[dtype], layout, *shape) for dtype in arguments.dtype for layout in arguments.layout]


def require_gpu() -> str:
    """The name of this machine's GPU. Raises UserError unless kernels can be timed on it."""
    if not torch.cuda.is_available():
        raise UserError("tuning needs a GPU that PyTorch can use; without one, --dry-run lists what would be tried")
    if triton.knobs.runtime.interpret:
        raise UserError("TRITON_INTERPRET is set, so the kernels would run on the CPU; unset it for tuning")
    return torch.cuda.get_device_name()


def read_entries(path: Path, gpu: str) -> dict[str, dict]:
    """The entries of the table that will be added to; none if there is no file.

    Raises UserError if it is broken or another GPU's.
    """
    if not path.exists():
        return {}
    table = read_table(path)
    if table["gpu"] != gpu:
        raise UserError(f"{path} is the table of {table['gpu']}, and this GPU is {gpu}; give another --out")
    return table["entries"]


def tune(
    settings: Sequence[Setting],
    timers: Callable[[Setting], Mapping[str, Callable[[Config], float]]],
    seconds: float,
    console: Console,
) -> list[dict[str, Found]]:
    """Search every setting and kernel, one after the other; each gets an equal share of the time that is left.

    `timers` makes the `measure` of each kernel on a setting's inputs. Returns what was found by setting and kernel.
    """
    spaces = [search_space(setting.classes, setting.dtype.itemsize) for setting in settings]
    searches = sum(len(space) for space in spaces)
    began = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[eta]}"),
    )
    results = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(len(configs) for space in spaces for configs in space.values()), eta="")

        def advance(count: int = 1) -> None:
            bar.advance(task, count)
            elapsed, tasks = time.perf_counter() - began, bar.tasks[0]
            eta = min(seconds - elapsed, elapsed / max(1, tasks.completed) * tasks.remaining)
            bar.update(task, eta=f"ETA {max(0, eta):.0f} s")

        for setting, space in zip(settings, spaces):
            name = setting.key().name
            bar.update(task, description=name)
            measures = timers(setting)
            results.append({})
            for kernel, candidates in space.items():
                bar.update(task, description=f"{name} {kernel}")
                share = (seconds - (time.perf_counter() - began)) / searches
                found = search(candidates, measures[kernel], share, progress=advance)
                results[-1][kernel] = found
                searches -= 1
                advance(len(candidates) - found.tried)
                if not console.is_terminal:
                    say(
                        console, f"{name} {kernel}: {found.us:.1f} us, {found.tried} of {len(candidates)} configs tried"
                    )
    return results


def gpu_timers(setting: Setting) -> dict[str, Callable[[Config], float]]:
    """Device time of each kernel on a batch of its own, by config."""
    calls = kernel_calls(make_case(setting, "cuda"), default_configs(setting.classes, setting.dtype.itemsize))
    return {kernel: partial(device_time, call) for kernel, call in calls.items()}


def check(settings: Sequence[Setting], configs: Sequence[KernelConfigs]) -> str | None:
    """The first disagreement of a setting's configs with the torch backend in float64, if there is one."""
    for setting, chosen in zip(settings, configs):
        small = setting._replace(batch=min(setting.batch, CHECKED_IMAGES))
        problem = disagreement(make_case(small, "cuda"), chosen)
        if problem:
            return f"{setting.key().name}: {problem}, with {chosen}"
    return None


def describe(config: Config) -> str:
    if isinstance(config, DenseConfig):
        tiles = f", {config.tiles} tiles" if config.tiles > 1 else ""
        return f"{config.points} points, {config.classes} classes, {config.warps} warps{tiles}"
    size = f"{config.points} points" if isinstance(config, BagsConfig) else f"{config.cells}x{config.cells} cells"
    return f"{size}, {config.warps} warps"


def result_table(settings: Sequence[Setting], results: Sequence[dict[str, Found]]) -> Table:
    table = Table("key", "kernel", "default us", "best us", "gain", "config", "tried", "failed")
    for setting, by_kernel in zip(settings, results):
        for kernel, found in by_kernel.items():
            times = f"{found.default_us:.1f}", f"{found.us:.1f}", f"{1 - found.us / found.default_us:.0%}"
            counts = str(found.tried), str(found.failed)
            table.add_row(setting.key().name, kernel, *times, describe(found.config), *counts)
    return table


def table_entry(setting: Setting, by_kernel: dict[str, Found]) -> dict:
    """What the table holds for a key: the configs, and for people what they were measured on, in microseconds."""
    entry: dict = {"measured_on": str(setting)}
    for kernel, found in by_kernel.items():
        default_us = round(found.default_us, 2) if math.isfinite(found.default_us) else None
        entry[kernel] = {**found.config._asdict(), "us": round(found.us, 2), "default_us": default_us}
    return entry


def main() -> int:
    arguments = build_parser().parse_args()
    console = cli.open_console(arguments)
    settings = read_settings(arguments)
    if arguments.dry_run:
        space = search_space(arguments.classes)
        for setting in settings:
            say(console, f"key {setting.key().name}: {setting}")
        for kernel, configs in space.items():
            say(console, f"{kernel}: {len(configs)} configs, the default first")
            for config in configs:
                say(console, f"  {describe(config)}")
        keys = [setting.key().name for setting in settings]
        listed = {kernel: [config._asdict() for config in configs] for kernel, configs in space.items()}
        cli.print_result(arguments, {"keys": keys, "configs": listed})
        return 0
    gpu = require_gpu()
    out = arguments.out or cache_table(gpu)
    entries = read_entries(out, gpu)
    make_folder(out.parent)
    defaults = [default_configs(setting.classes, setting.dtype.itemsize) for setting in settings]
    try:
        if arguments.check and (problem := check(settings, defaults)):
            return cli.report_failure(problem)
        results = tune(settings, gpu_timers, arguments.seconds, console)
        console.print(result_table(settings, results))
        best = [KernelConfigs(*(found.config for found in by_kernel.values())) for by_kernel in results]
        if arguments.check and (problem := check(settings, best)):
            return cli.report_failure(problem)
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"{gpu} has too little memory for {settings[0]}; lower --batch") from None
    new = {setting.key().name: table_entry(setting, found) for setting, found in zip(settings, results)}
    write_table(out, gpu, {**entries, **new})
    cli.print_result(arguments, {"table": str(out), "entries": new})
    say(console, f"table: {out}" + ("" if out == cache_table(gpu) else f"; to use it, set DWTRITON_TABLE={out}"))
    return 0


if __name__ == "__main__":
    cli.run(main)
