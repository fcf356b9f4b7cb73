"""Read files of tensors and check that they fit a module, with everything that is wrong in one error."""

import pickle
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
        raise UserError(f"{what} {path} {'is a folder; name a file' if path.is_dir() else 'does not exist'}{remedy}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a different type for every way a file can be damaged
        reason = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # whose text advises to execute what the file holds
            reason = "not a file of tensors"
        raise UserError(f"{what} {path} cannot be read, it is damaged or something else ({reason}){remedy}") from error


def check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError unless `given`, named `source`, has exactly the names and shapes of `expected`.

    It lists every tensor that is missing, unexpected, of another shape, or in half precision, which rounds the weights.
    """
    problems = [f"missing: {name} {_shape(expected[name])}" for name in expected if name not in given]
    problems += [f"unexpected: {name} {_shape(given[name])}" for name in given if name not in expected]
    for name, own in expected.items():
        tensor = given.get(name, own)
        if _shape(tensor) != _shape(own):
            problems.append(f"wrong shape: {name} is {_shape(tensor)}, the model has {_shape(own)}")
        elif tensor.is_floating_point() and tensor.element_size() < 4:
            problems.append(f"wrong dtype: {name} is {tensor.dtype}, not {own.dtype}")
    if problems:
        raise UserError(f"{source} does not fit the model ({len(problems)} tensors):\n  " + "\n  ".join(problems))


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"of type {type(value).__name__}"
