"""What a resumed run is told: that its data are others than before, or that it has nothing left to do."""

from pathlib import Path

from dwtriton.checkpoints.checkpoint import Checkpoint
from dwtriton.core.errors import UserError
from dwtriton.data.fingerprint import Fingerprint, changes_of_data


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
