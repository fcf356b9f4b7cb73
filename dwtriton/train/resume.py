"""How a run goes on: from which checkpoint, and what it is told about damage, changed data and nothing left to do."""

import shlex
from contextlib import suppress
from pathlib import Path

from dwtriton.checkpoints.checkpoint import Checkpoint, load_checkpoint
from dwtriton.core.errors import UserError
from dwtriton.data.fingerprint import Fingerprint, changes_of_data
from dwtriton.train.run_folder import BEST, LAST, PREVIOUS


def load_last(out: Path) -> Checkpoint:
    """Read the checkpoint that the run in `out` goes on from.

    Raises UserError if it is absent or damaged, with the latest other one of the run that is whole.
    """
    try:
        return load_checkpoint(out / LAST)
    except UserError as error:
        others = {}
        for path in (out / PREVIOUS, out / BEST, *sorted(out.glob("epoch-*.pt"))[-1:]):
            with suppress(UserError):
                others[path] = load_checkpoint(path).iteration
        if not others:
            raise
        latest = max(others, key=others.get)
        move = shlex.join(["cp", str(latest), str(out / LAST)])
        whole = f"{latest}, of iteration {others[latest]}, is whole: to go on from it, {move} and --resume again"
        raise UserError(f"{error}. {whole}") from None


def state_of_run(out: Path, saved: int, total: int) -> str:
    """Say in which state a run that failed left its folder, with `saved` of `total` iterations in `last.pt`."""
    if not (out / LAST).exists():
        return f"there is no {out / LAST}: {'bring it back' if saved else 'no iteration is saved, start again'}"
    resume = shlex.join(["python", "-m", "dwtriton.train", "--resume", "--out", str(out)])
    return f"{out / LAST} holds iteration {saved} of {total}; mend the cause and continue with: {resume}"


def check_data(path: Path, checkpoint: Checkpoint, data: dict[str, Fingerprint], allow_changes: bool) -> list[str]:
    """Return what changed in the data sets of the run that `path` holds, a line for each; none if it is not known.

    Raises UserError for changes unless `allow_changes`.
    """
    before = checkpoint.data or {}
    changes = {name: changes_of_data(before[name], now) for name, now in data.items() if name in before}
    lines = [f"{name} changed: {change}" for name, change in changes.items() if change]
    if lines and not allow_changes:
        raise UserError(
            f"{path} was trained on other data. {'. '.join(lines)}. Restore the data; or go on with them as they are: "
            f"--resume --data-changed; or begin another run from it: --weights {path}"
        )
    return lines


def check_iterations(path: Path, done: int, total: int) -> None:
    """Raise UserError if more iterations are done than a run on changed data has."""
    if done > total:
        raise UserError(
            f"{path} has done {done} iterations, and on the changed data the whole run has {total}: begin another run "
            f"from it: --weights {path}"
        )


def finished_hint(path: Path) -> str:
    """Say how to go on after a run that has done all its iterations."""
    return (
        "all iterations are done: the run is evaluated again, and nothing is trained. To train on, begin another run "
        f"from it: --cfg CONFIG --weights {path} --out ANOTHER_FOLDER"
    )
