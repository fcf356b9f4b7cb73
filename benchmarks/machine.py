"""Hardware, versions and commit, which figures depend on."""

import hashlib
import os
import platform
import subprocess
from datetime import date
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from dwtriton.core.errors import UserError

ROOT = Path(__file__).parents[1]
CODE = ("dwtriton/**/*.py", "dwtriton/**/*.toml", "benchmarks/**/*.py", "tests/support/*.py")  # that figures depend on


def find_device(name: str) -> torch.device:
    """Return the device of that name. Raises UserError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU; --device cpu times the CPU")
    return torch.device(name)


@cache
def code_hash() -> str:
    """Return a hash of all code that figures depend on, whether or not it is committed."""
    files = sorted(file for pattern in CODE for file in ROOT.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def kernel_configs(device: torch.device) -> str | None:
    """Return file and hash of the launch configs that the kernels take on a GPU; None on a CPU, and without Triton."""
    if device.type == "cpu" or find_spec("triton") is None:
        return None
    from dwtriton.kernels.tuning import find_table  # needs Triton

    table = find_table(torch.cuda.get_device_name(device))
    return "defaults" if table is None else f"{table.name} {hashlib.sha256(table.read_bytes()).hexdigest()[:12]}"


def machine(device: torch.device) -> dict[str, str | int | bool | None]:
    """Return name, versions, commit and whatever else a figure should be quoted with; None for what is unknown."""
    return {"device": device.type, **(_gpu(device) if device.type == "cuda" else _cpu()), **_software()}


def _gpu(device: torch.device) -> dict:
    import triton

    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")  # a line for each GPU
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 1e9),
        "l2_mb": round(properties.L2_cache_size / 1e6),
        "driver": driver and driver.partition("\n")[0],
        "cuda": torch.version.cuda or torch.version.hip,
        "triton": triton.__version__,
    }


def _cpu() -> dict:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "name": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),  # before the run; from 0.5 on, other processes slow the benchmark down
    }


def _software() -> dict:
    changes = _output("git", "status", "--porcelain", ":(top)", ":(top,exclude)benchmarks/results")
    return {
        "torch": torch.__version__,
        "commit": _output("git", "rev-parse", "HEAD"),
        "code": code_hash(),
        "dirty": None if changes is None else bool(changes),
        "date": date.today().isoformat(),
    }


def _output(*command: str) -> str | None:
    """Return the output of a command run in the repository; None if it fails or does not exist."""
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
