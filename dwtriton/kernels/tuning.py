"""Tables of launch configs that `dwtriton.tune` leaves for each GPU, and which configs an input gets."""

import json
import logging
import os
import re
from datetime import date
from functools import cache
from pathlib import Path

import torch
import triton

from dwtriton.core.errors import UserError
from dwtriton.core.files import write_text
from dwtriton.kernels.configs import (
    Config,
    DenseConfig,
    KernelConfigs,
    Key,
    default_configs,
    interpreter_configs,
    power_of_two,
)

logger = logging.getLogger("dwtriton")

TABLE_VERSION = 2
SHIPPED_TABLES = Path(__file__).parent / "tuned"
LARGEST = {"points": 4096, "classes": 64, "warps": 8, "tiles": 8, "stages": 4, "programs": 2**16}
MAX_BLOCK = 2**15  # points x classes that a table may ask of one program at a time


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
    return _tuned_configs(index, key.name) or default_configs(key)


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
        if type(value) is not int or not 1 <= value <= largest or value != power_of_two(value):
            raise ValueError(f"{kernel} {field} must be a power of two up to {largest}, not {value!r}")
    config = kind(**{field: fields[field] for field in kind._fields})
    if isinstance(config, DenseConfig) and config.points * config.classes > MAX_BLOCK:
        raise ValueError(f"{kernel} points times classes must be at most {MAX_BLOCK}")
    return config
