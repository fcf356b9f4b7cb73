"""Whether a set of tensors fits a module: everything that is wrong, in one error."""

from collections.abc import Mapping

from torch import Tensor

from dwtriton.errors import UserError


def check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError unless `given` holds exactly the names and shapes of `expected`; `source` names it in the error.

    The error lists every tensor that is missing, unexpected or of another shape.
    """
    problems = [f"missing: {name} {_shape(expected[name])}" for name in expected if name not in given]
    problems += [f"unexpected: {name} {_shape(given[name])}" for name in given if name not in expected]
    problems += [
        f"wrong shape: {name} is {_shape(given[name])}, the model has {_shape(expected[name])}"
        for name in expected
        if name in given and _shape(given[name]) != _shape(expected[name])
    ]
    if problems:
        raise UserError(f"{source} does not fit the model ({len(problems)} tensors):\n  " + "\n  ".join(problems))


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"of type {type(value).__name__}"
