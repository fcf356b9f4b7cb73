"""Read files of tensors and check that they fit a module, with everything that is wrong in one error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dwtriton.core.errors import UserError


def read_torch_file(path: Path, what: str, remedy: str = "") -> Any:
    """Read a file of tensors to the CPU, executing nothing in it.

    Raises UserError if the file is missing or damaged; `what` names its kind there, and `remedy` is appended.
    """
    if not path.is_file():
        raise UserError(f"{what} {path} does not exist{remedy}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a different type for every way a file can be damaged
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{what} {path} cannot be read, it is damaged or something else ({reason}){remedy}") from error


def check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError unless `given` has exactly the names and shapes of `expected`; `source` names it in the error.

    The error lists every tensor that is missing, unexpected, of another shape, or in half precision: weights are taken
    as they were trained, not rounded.
    """
    problems = [f"missing: {name} {_shape(expected[name])}" for name in expected if name not in given]
    problems += [f"unexpected: {name} {_shape(given[name])}" for name in given if name not in expected]
    problems += [
        f"wrong shape: {name} is {_shape(given[name])}, the model has {_shape(expected[name])}"
        for name in expected
        if name in given and _shape(given[name]) != _shape(expected[name])
    ]
    problems += [
        f"wrong dtype: {name} is {given[name].dtype}, not {expected[name].dtype}"
        for name in expected
        if isinstance(given.get(name), Tensor) and given[name].is_floating_point() and given[name].element_size() < 4
    ]
    if problems:
        raise UserError(f"{source} does not fit the model ({len(problems)} tensors):\n  " + "\n  ".join(problems))


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"of type {type(value).__name__}"
