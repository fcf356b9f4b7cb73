"""Read and write files of tensors, and check that they fit a module, with everything that is wrong in one error."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dwtriton.core.errors import UserError, WriteError
from dwtriton.core.files import write_file


def read_torch_file(path: Path, what: str, remedy: str = "") -> Any:
    """Read a file of tensors to the CPU, executing nothing in it.

    Raises UserError if the file is missing or damaged, be it by a bit; `what` names its kind there, and `remedy` is
    appended.
    """
    if not path.is_file():
        raise UserError(f"{what} {path} {'is a folder; name a file' if path.is_dir() else 'does not exist'}{remedy}")
    try:
        if zipfile.is_zipfile(path):  # files before PyTorch 1.6 are not
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a different type for every way a file can be damaged
        if kind := _other_kind(path):
            raise UserError(f"{what} {path} cannot be read: it is {kind}{remedy}") from None
        reason = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # whose text advises to execute what the file holds
            reason = "not a file of tensors"
        raise UserError(f"{what} {path} cannot be read, it is damaged or something else ({reason}){remedy}") from error


def _other_kind(path: Path) -> str | None:
    """Say what a file is that `torch.save` did not write and why it does not serve; None if nothing tells."""
    with path.open("rb") as file:
        beginning = file.read(9)
    if not beginning:
        return "empty, so it is damaged"
    if beginning[8:] == b"{":  # behind the length of a header
        return "a safetensors file; `dwtriton.weights from-safetensors` converts those of `to-safetensors`"
    if path.suffix.lower() == ".onnx":
        return "an ONNX file, a graph whose folded tensors are no network's weights any more"
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name.partition("/")[2] for name in archive.namelist()}
    except Exception:  # zipfile raises a different type for every way a file can be damaged
        return None
    if "archive_format" in parts:
        return "a file of torch.export, a graph and not the checkpoint that it was made from"
    if "constants.pkl" in parts:
        return "a TorchScript file, a program and not the state dict of one"
    return None if "data.pkl" in parts else "a zip archive that torch.save did not write"


def write_torch_file(path: Path, content: Any) -> None:
    """Write a file of tensors, whole or not at all; what was at `path` is kept until the new file is read back.

    Raises WriteError if the disk refuses the file or gives something else back.
    """

    def check(written: Path) -> None:
        _forget_cached(written)
        try:
            _check_archive(written)
        except OSError:
            raise
        except Exception as error:  # zipfile raises a different type for every way a file can be damaged
            raise WriteError(f"{path} cannot be written: the disk gives something else back ({error})") from error

    write_file(path, lambda file: torch.save(content, file), check)


def _check_archive(path: Path) -> None:
    """Raise ValueError, or an error of zipfile, unless every part of an archive matches its checksum."""
    with zipfile.ZipFile(path) as archive:
        if part := archive.testzip():
            raise ValueError(f"the checksum of its part {part} is wrong")


def _forget_cached(path: Path) -> None:
    """Have the system read a file from the disk next time, not from its memory; where that cannot be, do nothing."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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
