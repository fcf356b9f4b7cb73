"""Launch configs of the kernels: defaults, the search space of `dwtriton.tune`, and the tables it leaves for each GPU.

No result depends on a config beyond rounding. A key holds neither the batch size nor box counts, so that the gradients
of an image never depend on what else is in its batch.
"""

import json
import logging
import os
import re
from datetime import date
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from dwtriton.core.errors import UserError
from dwtriton.core.files import write_text

logger = logging.getLogger("dwtriton")

TABLE_VERSION = 2
SHIPPED_TABLES = Path(__file__).parent / "tuned"
LARGEST = {"points": 4096, "classes": 64, "warps": 8, "tiles": 8, "stages": 4, "programs": 2**16}
MAX_BLOCK = 2**15  # points x classes that a table may ask of one program at a time
MOST_BLOCKS = 6  # of classes, that a dense pass reads at once


class DenseConfig(NamedTuple):
    """Of a dense pass; powers of two."""

    points: int  # of a tile
    classes: int  # class block: classes taken at a time
    warps: int
    tiles: int  # that a program takes, one after the other
    stages: int  # of the loop over classes, where there are too many to read them all at once

    def steps(self, num_classes: int) -> int:
        """Of the loop over classes; with one there is no loop."""
        return -(-num_classes // (self.classes * MOST_BLOCKS))

    def blocks(self, num_classes: int) -> int:
        """Blocks of classes that a step reads at once: an equal share of all."""
        return -(-num_classes // (self.classes * self.steps(num_classes)))


class BagsConfig(NamedTuple):
    """Of the sums over the points of each box; powers of two."""

    points: int  # that a program takes at a time
    warps: int
    programs: int  # at most so many share the boxes of a batch, if these are fewer


Config = DenseConfig | BagsConfig


class KernelConfigs(NamedTuple):
    """One config for each kernel; the field names are the kernels' names in tables."""

    dense_forward: DenseConfig
    bags: BagsConfig
    dense_backward: DenseConfig


class Key(NamedTuple):
    """What a table distinguishes, before sizes are put into buckets."""

    dtype: torch.dtype  # of the class logits
    layout: str  # of the class logits: "channels_last" or "contiguous"
    classes: int
    points: int  # of one image, over all levels

    @property
    def name(self) -> str:
        """The key in a table: sizes are rounded up to powers of two."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} {self.layout} classes<={_power_of_two(self.classes)} points<={_power_of_two(self.points)}"


# What is worth trying, the more promising first.
_WARPS = (1, 2, 4)
_TILES = (1, 2)
_STAGES = (1, 2)  # where there is a loop over classes
_ENTRIES = {"dense_forward": (8, 16), "dense_backward": (8,)}  # logits in a thread, of one block of classes
_BAGS = tuple(
    BagsConfig(points, warps, programs)
    for points, warps in ((128, 2), (64, 1), (128, 4), (128, 1), (256, 4))
    for programs in (2**14, 2**16, 2**12)
)


def default_configs(num_classes: int, itemsize: int = 2) -> KernelConfigs:
    """The configs of a GPU, or a key, without a table; `itemsize` is that of the logits, in bytes.

    By arithmetic, for 80 classes in bfloat16 on sm_90, and logits as at the start of training, where hardly a tile has
    a high score:

    - Eight logits of a thread are a load of 16 bytes, and two threads a sector of 32. With one warp, no sum over the
      classes of a point leaves it.
    - Forward, a warp spends about 120 instructions on a program, and 17 on a logit of each thread. At 16 points a
      thread has 40 logits, which makes 20 a logit; its five loads, in 20 registers, are on their way before any is
      used. At 32 points it would be 18.4, but ten loads leave no room for the rest.
    - Backward, it is 300 and 22: 29.5 a logit at 16 points, 25.8 at 32. Stores keep the loads apart, so that they need
      no room; but in float32 32 points do not fit into 64 registers, and 16 have to do.
    - Of 16 images of 800x1344 this makes 22,400 and 11,200 warps, for the 4,224 that an H100 holds at once.
    - Of 7 boxes an image all 16 parts of a box, with two warps each, are held at once.
    """
    block = class_blocks(num_classes, itemsize)[0]
    forward = DenseConfig(points=256 // block, classes=block, warps=1, tiles=1, stages=1)
    backward = forward._replace(points=forward.points * (2 if itemsize == 2 else 1))
    return KernelConfigs(forward, _BAGS[0], backward)


def search_space(num_classes: int, itemsize: int = 2) -> dict[str, list[Config]]:
    """Configs worth timing for each kernel: the default first, then the more promising before the less.

    None of them spills on sm_90; with more in a thread some do.
    """
    spaces: dict[str, list[Config]] = {"bags": list(_BAGS)}
    for kernel, most_entries in (("dense_forward", 16), ("dense_backward", 32 // itemsize)):
        choices = (class_blocks(num_classes, itemsize), _STAGES, _WARPS, _TILES, _ENTRIES[kernel])
        spaces[kernel] = []
        for ranks in sorted(product(*map(range, map(len, choices))), key=sum):
            block, stages, warps, tiles, entries = (choice[rank] for choice, rank in zip(choices, ranks))
            config = DenseConfig(32 * warps * entries // block, block, warps, tiles, stages)
            if entries * tiles <= most_entries and (stages == 1 or config.steps(num_classes) > 1):
                spaces[kernel].append(config)
    return {
        kernel: [default, *(config for config in spaces[kernel] if config != default)]
        for kernel, default in default_configs(num_classes, itemsize)._asdict().items()
    }


def interpreter_configs(num_classes: int) -> KernelConfigs:
    """For Triton's interpreter, where few large programs take less time than many small ones."""
    dense = DenseConfig(256, min(16, _power_of_two(num_classes)), 1, 1, 1)
    return KernelConfigs(dense, BagsConfig(512, 1, 1), dense)


def class_blocks(num_classes: int, itemsize: int) -> list[int]:
    """Class blocks worth trying, the best first: whole sectors of 32 bytes a row, with few entries beyond the classes.

    A row of fewer bytes is one block.
    """
    most = _power_of_two(num_classes)
    for choices in ((16, 32), (8,)):
        blocks = [block for block in choices if 32 // itemsize <= block <= most]
        if blocks := [block for block in blocks if -(-num_classes // block) * block <= 1.25 * num_classes]:
            return blocks
    return [min(most, 16)]


def _power_of_two(number: int) -> int:
    """The least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def lookup(device: torch.device, key: Key) -> KernelConfigs:
    """The configs for inputs on a device.

    The first of these that exists is the device's table: the file that DWTRITON_TABLE names (`default`: none), the
    user's cache, the table shipped for this GPU. Without one, or if it lacks the key, the defaults are used. A table
    is read once in a process, and what was taken is logged once, as INFO of the logger "dwtriton". Tensors on a CPU
    (Triton's interpreter) take configs of their own. Raises UserError if the table is broken.
    """
    if device.type != "cuda":
        return interpreter_configs(key.classes)
    index = torch.cuda.current_device() if device.index is None else device.index
    return _tuned_configs(index, key.name) or default_configs(key.classes, key.dtype.itemsize)


def clear_cache() -> None:
    """Forget the tables read so far, so that the next lookup reads anew."""
    _device_table.cache_clear()
    _tuned_configs.cache_clear()


@cache
def _device_table(index: int) -> dict[str, KernelConfigs]:
    """Configs by key name from the table of a GPU; empty if there is none. Says which table it is."""
    gpu = torch.cuda.get_device_name(index)
    path = find_table(gpu)
    if path is None:
        logger.info("cuda:%d (%s): default kernel configs; `python -m dwtriton.tune` finds better ones", index, gpu)
        return {}
    table = read_table(path)
    logger.info("cuda:%d (%s): kernel configs of %s, tuned on %s", index, gpu, path, table["gpu"])
    return {name: _read_entry(entry) for name, entry in table["entries"].items()}


@cache
def _tuned_configs(index: int, name: str) -> KernelConfigs | None:
    """The configs of a key in the table of a GPU. Logs once if a table lacks the key."""
    table = _device_table(index)
    if table and name not in table:
        logger.info("cuda:%d: no tuned kernel configs for %s; using the defaults", index, name)
    return table.get(name)


def table_name(gpu: str) -> str:
    """File name of a GPU's table: `nvidia-h200.json` for "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def cache_table(gpu: str) -> Path:
    """Where a user's table for a GPU lies, whether or not it exists: in DWTRITON_CACHE, or else ~/.cache/dwtriton."""
    folder = os.environ.get("DWTRITON_CACHE")
    if not folder:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dwtriton"
    return Path(folder).expanduser() / table_name(gpu)


def find_table(gpu: str) -> Path | None:
    """The table of a GPU, by the order of `lookup`. Raises UserError if DWTRITON_TABLE names a file that is absent."""
    named = os.environ.get("DWTRITON_TABLE")
    if named == "default":
        return None
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise UserError(f"DWTRITON_TABLE names {named}, which is no file; name a table, `default`, or unset it")
        return path
    candidates = (cache_table(gpu), SHIPPED_TABLES / table_name(gpu))
    return next((path for path in candidates if path.exists()), None)


def read_table(path: Path) -> dict:
    """A table as it lies in its file: `gpu`, and under `entries` by key name the config of each kernel.

    Raises UserError, naming file and remedy, if it cannot be read, has another version or a config out of bounds.
    """

    def broken(problem: object) -> UserError:
        remedy = "delete it and run `python -m dwtriton.tune`, or set DWTRITON_TABLE=default to go without"
        return UserError(f"the tuning table {path} cannot be used: {problem}; {remedy}")

    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise broken(error.strerror) from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise broken(f"it is not JSON ({error})") from None
    if not isinstance(table, dict) or table.get("version") != TABLE_VERSION:
        found = table.get("version") if isinstance(table, dict) else None
        raise broken(f"its version is {found}, this dwtriton reads version {TABLE_VERSION}")
    if not isinstance(table.get("gpu"), str) or not isinstance(table.get("entries"), dict):
        raise broken("it names no gpu or has no entries")
    for name, entry in table["entries"].items():
        try:
            _read_entry(entry)
        except ValueError as error:
            raise broken(f"{name!r}: {error}") from None
    return table


def write_table(path: Path, gpu: str, entries: dict[str, dict]) -> None:
    """Write a table, whole or not at all."""
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    head = {"version": TABLE_VERSION, "gpu": gpu, **versions, "date": date.today().isoformat()}
    write_text(path, json.dumps({**head, "entries": entries}, indent=2) + "\n")


def _read_entry(entry: object) -> KernelConfigs:
    """The configs of a table's entry, whose other fields are for people. Raises ValueError if one is out of bounds."""
    kinds = KernelConfigs.__annotations__.items()
    return KernelConfigs(*(_read_config(entry, kernel, kind) for kernel, kind in kinds))


def _read_config(entry: object, kernel: str, kind: type[Config]) -> Config:
    fields = entry.get(kernel) if isinstance(entry, dict) else None
    if not isinstance(fields, dict):
        raise ValueError(f"it has no {kernel} config")
    for field in kind._fields:
        value, largest = fields.get(field), LARGEST[field]
        if type(value) is not int or not 1 <= value <= largest or value != _power_of_two(value):
            raise ValueError(f"{kernel} {field} must be a power of two up to {largest}, not {value!r}")
    config = kind(**{field: fields[field] for field in kind._fields})
    if isinstance(config, DenseConfig) and config.points * config.classes > MAX_BLOCK:
        raise ValueError(f"{kernel} points times classes must be at most {MAX_BLOCK}")
    return config
