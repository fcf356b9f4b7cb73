"""Kill runs at random moments, resume them, and compare with runs that nothing happened to: `make test-faults`.

`python -m tests.support.kills --kills 60`: in turn without loader workers, with two, and on two ranks. After a chain of
1 to 4 kills, each of one process or of all, a run is resumed to its end, and all files of its folder are compared.
"""

import argparse
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from dwtriton.config.load import dump_config, load_config
from dwtriton.data.prepare import prepare_data
from tests.conftest import TINY

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
MODES = {  # name: (settings, how it is started)
    "no workers": (["data.workers=0"], []),
    "2 workers": (["data.workers=2"], []),
    "2 ranks": (["data.workers=0", "backbone.frozen_statistics=true"], TORCHRUN),
}
SETTINGS = [
    "train.keep_every=1",
    "train.checkpoint_every=2",
    "data.short_side=[32, 32]",
    "data.long_side=64",
    "data.buckets=1",
    "inference.short_side=32",
    "inference.long_side=64",
    "backbone.frozen_stages=4",  # a third of the checkpoint, and no gradients
    "optimizer.kind=sgd",
]
DEPENDS_ON_STOPS = {"previous.pt", "run.lock"}
MAX_IN_CHAIN = 4  # kills


def run_command(mode: str, folder: Path, out: str) -> list[str]:
    """Return the command that begins a run in `folder`, or resumes it if it has a checkpoint."""
    path = folder / out
    begin = ["--cfg", str(folder / f"{mode}.toml")]
    which = ["--resume"] if (path / "last.pt").exists() else begin
    return [sys.executable, *(MODES[mode][1] or []), "-m", "dwtriton.train", *which, "--out", str(path)]


def start(command: list[str], log: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("a") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, env=environment)


def descendants(process: int) -> list[int]:
    """Return the children of a process, theirs, and so on."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [number for child in map(int, children) for number in (child, *descendants(child))]


def kill(process: subprocess.Popen, generator: random.Random) -> str:
    """Kill one of a run's processes or all of them; return which."""
    others = descendants(process.pid)
    victims = generator.choice([[process.pid], others[:1] or [process.pid], [process.pid, *others]])
    for victim in victims:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    which = "all" if len(victims) > 1 else "main" if victims == [process.pid] else "child"
    try:
        process.wait(300)
    finally:
        for left in others:  # ranks whose torchrun was killed
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
    return which


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of the files that are in one folder alone or differ, but for those that depend on stops."""
    names = {path.name for folder in (one, other) for path in folder.iterdir()} - DEPENDS_ON_STOPS
    files = [(one / name, other / name) for name in sorted(names)]
    return [a.name for a, b in files if not (a.exists() and b.exists() and a.read_bytes() == b.read_bytes())]


def try_mode(mode: str, kills: int, folder: Path, generator: random.Random) -> Counter:
    """Kill runs of one kind `kills` times; return what was counted."""
    cfg = load_config("shapes", [*TINY, *SETTINGS, *MODES[mode][0]], folder)
    (folder / f"{mode}.toml").write_text(dump_config(cfg))
    log = folder / f"{mode}.log"
    began = time.monotonic()
    start(run_command(mode, folder, f"{mode} whole"), log).wait(600)
    seconds = time.monotonic() - began
    counts: Counter = Counter()
    while counts["kills"] < kills:
        counts["chains"] += 1
        out, ended = f"{mode} {counts['chains']}", False
        planned = min(generator.randint(1, MAX_IN_CHAIN), kills - counts["kills"])
        while planned and not ended:
            process = start(run_command(mode, folder, out), log)
            try:
                ended = process.wait(generator.uniform(0, seconds)) == 0
            except subprocess.TimeoutExpired:
                counts["kills"] += 1
                planned -= 1
                counts[f"killed: {kill(process, generator)}"] += 1
                counts["during a write"] += any((folder / out).glob(".*"))
        if not ended:
            ended = start(run_command(mode, folder, out), log).wait(600) == 0
        wrong = differences(folder / f"{mode} whole", folder / out) if ended else ["not finished"]
        counts["bit for bit"] += not wrong
        if wrong:
            print(f"{mode}, chain {counts['chains']}: {', '.join(wrong)}", file=sys.stderr)
        for path in (folder / out).glob("*.pt"):  # of 45 MB
            path.unlink()
    for traceback in log.read_text().split("Traceback (most recent call last)")[1:]:
        if "torch.distributed.elastic" not in traceback:  # torchrun's own
            counts["tracebacks"] += 1
            print(f"{mode}: {traceback}", file=sys.stderr)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=60, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shapes"
        prepare_data(load_config("shapes", TINY, folder), Console(file=io.StringIO()))
        for index, mode in enumerate(MODES):
            share = arguments.kills * (index + 1) // len(MODES) - arguments.kills * index // len(MODES)
            results[mode] = try_mode(mode, share, folder, generator)
            print(f"{mode}: {dict(results[mode])}", flush=True)
    total = sum(results.values(), Counter())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {**total, "tracebacks": total["tracebacks"]}
    print(json.dumps({**figures, "CPU seconds": round(used.ru_utime + used.ru_stime), "seed": arguments.seed}))
    return int(total["bit for bit"] < total["chains"] or total["tracebacks"] > 0)


if __name__ == "__main__":
    sys.exit(main())
