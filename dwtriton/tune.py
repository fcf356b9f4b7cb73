"""`dwtriton tune`: time launch configs of the kernels on this GPU and save the fastest."""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from rich.console import Console
from rich.table import Table

from dwtriton.console import cli
from dwtriton.console.cli import print_line
from dwtriton.console.progress import ProgressDisplay
from dwtriton.core.errors import UserError
from dwtriton.core.files import make_folder
from dwtriton.kernels import tuning
from dwtriton.kernels.configs import Config, KernelConfigs, default_configs, search_space
from dwtriton.kernels.trial import LAYOUTS, Setting, device_time, disagreement, kernel_calls, make_case

EXAMPLES = """\
  python -m dwtriton.tune                                      80 classes, images of 800x1344; under a minute
  python -m dwtriton.tune --classes 20 --size 640x640 --batch 32 --check
  python -m dwtriton.tune --dtype bfloat16 --layout channels_last contiguous --out tuned.json
  python -m dwtriton.tune --dry-run                            list what would be tried; needs no GPU"""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NOISE = 0.02  # timings differ by this much from run to run; a config must beat the default by more
MAX_CHECKED_IMAGES = 2  # the check computes in float64


class SearchResult(NamedTuple):
    """The chosen config of a kernel and its time; times in microseconds, inf for a config that does not run."""

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
) -> SearchResult:
    """Measure candidates in order until the time is up, and choose the fastest. Raises UserError if none runs.

    The first candidate is the default: it is always measured, and stays unless another is faster by more than `NOISE`.
    `measure` returns microseconds, inf for a config that does not compile or run here; `progress` is called after each.
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
    return SearchResult(best, times[best], times[default], len(times), sum(map(math.isinf, times.values())))


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command_parser("dwtriton.tune", "Find the fastest configs of the kernels on this GPU.", EXAMPLES)
    parser.add_argument("--classes", metavar="C", type=int, default=80, help="number of classes (default: %(default)s)")
    cli.add_options(parser, "--size", default="800x1344", help="size of the padded images (default: %(default)s)")
    parser.add_argument("--batch", metavar="B", type=int, default=16, help="images in a batch (default: %(default)s)")
    parser.add_argument("--boxes", metavar="G", type=int, default=7, help="boxes in an image (default: %(default)s)")
    dtypes = "dtypes of the logits (default: all)"
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help=dtypes)
    layouts = "memory formats of the logits (default: channels_last)"
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=["channels_last"], help=layouts)
    parser.add_argument("--seconds", type=float, default=50, help="time of the whole search (default: %(default)g)")
    cli.add_options(parser, "--out", required=False, help="table to write or extend (default: the user's cache)")
    check = "compare with the torch backend in float64, before and after the search"
    parser.add_argument("--check", action="store_true", help=check)
    parser.add_argument("--dry-run", action="store_true", help="list what would be tried")
    return parser


def read_settings(arguments: argparse.Namespace) -> list[Setting]:
    """Return a setting for each dtype and layout. Raises UserError for an argument out of range."""
    for name, least in (("classes", 1), ("batch", 1), ("boxes", 1), ("seconds", 0)):
        if not (value := getattr(arguments, name)) >= least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    shape = arguments.classes, cli.read_size(arguments.size), arguments.batch, arguments.boxes
    return [Setting(DTYPES[dtype], layout, *shape) for dtype in arguments.dtype for layout in arguments.layout]


def require_gpu() -> str:
    """Return the name of this machine's GPU. Raises UserError unless kernels can be timed on it."""
    if not torch.cuda.is_available():
        raise UserError("tuning needs a GPU that PyTorch can use; without one, --dry-run lists what would be tried")
    if triton.knobs.runtime.interpret:
        raise UserError("TRITON_INTERPRET is set, so the kernels would run on the CPU; unset it for tuning")
    return torch.cuda.get_device_name()


def read_entries(path: Path, gpu: str) -> dict[str, dict]:
    """Return the entries of the table to extend, if there is one. Raises UserError if it is broken or another GPU's."""
    if not path.exists():
        return {}
    table = tuning.read_table(path)
    if table["gpu"] != gpu:
        raise UserError(f"{path} is the table of {table['gpu']}, and this GPU is {gpu}; give another --out")
    return table["entries"]


def tune(settings: Sequence[Setting], seconds: float, console: Console) -> list[dict[str, SearchResult]]:
    """Search the configs of each kernel for each setting; each search gets an equal share of the time left."""
    spaces = [search_space(setting.key()) for setting in settings]
    searches_left = sum(map(len, spaces))
    total = sum(len(candidates) for space in spaces for candidates in space.values())
    deadline = time.perf_counter() + seconds
    results: list[dict[str, SearchResult]] = []
    with ProgressDisplay(console, "tuning", total, time_limit=seconds) as display:
        for setting, space in zip(settings, spaces):
            timers = gpu_timers(setting)
            results.append({})
            for kernel, candidates in space.items():
                display.advance(0, what=f"{setting.key().name} {kernel}")
                share = (deadline - time.perf_counter()) / searches_left
                found = search(candidates, timers[kernel], share, progress=display.advance)
                results[-1][kernel] = found
                searches_left -= 1
                display.advance(len(candidates) - found.tried)
    return results


def gpu_timers(setting: Setting) -> dict[str, Callable[[Config], float]]:
    """Return for each kernel the function from a config to its device time, on one generated batch."""
    calls = kernel_calls(make_case(setting, "cuda"))
    return {kernel: partial(device_time, call) for kernel, call in calls.items()}


def check(settings: Sequence[Setting], configs: Sequence[KernelConfigs]) -> str | None:
    """Return the first disagreement of the kernels with the torch backend in float64, or None."""
    for setting, chosen in zip(settings, configs):
        small = setting._replace(batch=min(setting.batch, MAX_CHECKED_IMAGES))
        if problem := disagreement(make_case(small, "cuda"), chosen):
            return f"{setting.key().name}: {problem}, with {chosen}"
    return None


def describe(config: Config) -> str:
    return ", ".join(f"{name} {value}" for name, value in config._asdict().items())


def result_table(settings: Sequence[Setting], results: Sequence[dict[str, SearchResult]]) -> Table:
    table = Table("key", "kernel", "default us", "best us", "gain", "config", "tried", "failed")
    for setting, by_kernel in zip(settings, results):
        for kernel, found in by_kernel.items():
            times = f"{found.default_us:.1f}", f"{found.us:.1f}", f"{1 - found.us / found.default_us:.0%}"
            counts = str(found.tried), str(found.failed)
            table.add_row(setting.key().name, kernel, *times, describe(found.config), *counts)
    return table


def table_entry(setting: Setting, by_kernel: dict[str, SearchResult]) -> dict:
    """Return a key's entry in the table: the configs, and for people their times and what they were measured on."""
    entry: dict = {"measured_on": str(setting)}
    for kernel, (config, us, default_us, *_) in by_kernel.items():
        times = {"us": round(us, 2), "default_us": round(default_us, 2) if math.isfinite(default_us) else None}
        entry[kernel] = config._asdict() | times
    return entry


def list_candidates(arguments: argparse.Namespace, settings: Sequence[Setting], console: Console) -> None:
    """Print what a search would try, for each setting; those that share their candidates are listed together."""
    spaces = {setting: search_space(setting.key()) for setting in settings}
    for setting, space in spaces.items():
        alike = [other for other in spaces if spaces[other] == space]
        if setting != alike[0]:
            continue
        for other in alike:
            print_line(console, f"key {other.key().name}: {other}")
        for kernel, configs in space.items():
            print_line(console, f"{kernel}: {len(configs)} configs, the default first")
            for config in configs:
                print_line(console, f"  {describe(config)}")
    configs = {
        setting.key().name: {kernel: [config._asdict() for config in configs] for kernel, configs in space.items()}
        for setting, space in spaces.items()
    }
    cli.print_result(arguments, {"configs": configs})


def main() -> int:
    arguments = build_parser().parse_args()
    console = cli.open_console(arguments)
    settings = read_settings(arguments)
    if arguments.dry_run:
        list_candidates(arguments, settings, console)
        return 0
    gpu = require_gpu()
    out = arguments.out or tuning.cache_table(gpu)
    entries = read_entries(out, gpu)
    make_folder(out.parent)
    defaults = [default_configs(setting.key()) for setting in settings]
    try:
        if arguments.check and (problem := check(settings, defaults)):
            return cli.report_failure(problem)
        results = tune(settings, arguments.seconds, console)
        console.print(result_table(settings, results))
        best = [KernelConfigs(**{kernel: found.config for kernel, found in by_kernel.items()}) for by_kernel in results]
        if arguments.check and (problem := check(settings, best)):
            return cli.report_failure(problem)
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"{gpu} has too little memory for {settings[0]}; lower --batch") from None
    new = {setting.key().name: table_entry(setting, found) for setting, found in zip(settings, results)}
    tuning.write_table(out, gpu, {**entries, **new})
    cli.print_result(arguments, {"table": str(out), "entries": new})
    use = "" if out == tuning.cache_table(gpu) else f"; to use it, set DWTRITON_TABLE={out}"
    print_line(console, f"table: {out}{use}")
    return 0


if __name__ == "__main__":
    cli.run(main)
