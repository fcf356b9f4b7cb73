"""What the config in an MMDetection checkpoint says of the network that its tensors alone do not; nothing in it is run.

MMDetection keeps its config as the text of a Python program: `config` in the meta of 2.x, `cfg` in that of 3.x.
"""

import ast
from typing import Any

from dwtriton.checkpoints.mmdet_file import MmdetFile
from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.model.mmdet_names import CENTER_PRIOR

Settings = dict[str, list[Any]]  # all values of a key, wherever it stands


def check_mmdet_config(file: MmdetFile, cfg: Config, source: str) -> str | None:
    """Raise UserError, which names `source`, if its network computes something else than ours with equal tensors.

    These are ResNets of caffe style, images normalised otherwise than by `cfg`, and an FCOS head that is not in cells.
    Returns a note on what could not be checked because the file has no config.
    """
    text = file.meta.get("config") or file.meta.get("cfg")
    settings = read_settings(text) if isinstance(text, str) else None
    prior = all(name in file.weights for name in CENTER_PRIOR)
    if settings is None:
        if not prior:
            raise UserError(
                f"{source} lacks {' and '.join(CENTER_PRIOR)}, and has no config that tells how its head works: "
                "add the two (zeros, and 1.11 everywhere) if it was trained by Dual Weighting"
            )
        return "the file has no config to check: a ResNet of pytorch style and the images of this config are assumed"
    if "caffe" in settings["style"]:
        raise UserError(
            f"{source} has a ResNet of caffe style, with the stride on the first convolution of its blocks; here it is "
            "on the second (pytorch style), so its features would differ: it cannot be converted"
        )
    if not prior and not (settings["norm_on_bbox"] == [True] == settings["centerness_on_reg"]):
        raise UserError(
            f"{source} is of an FCOS head without norm_on_bbox=True and centerness_on_reg=True: it computes boxes and "
            "centerness otherwise than the head here"
        )
    if False in settings["to_rgb"] + settings["bgr_to_rgb"]:
        raise UserError(f"{source} takes images as BGR; the detectors here take RGB, and it cannot be converted")
    for key, own in (("mean", cfg.data.mean), ("std", cfg.data.std)):
        others = [value for value in settings[key] if len(value) == 3 and tuple(value) != own]
        if others:
            remedy = f"add --set 'data.{key}={others[0]}'"
            raise UserError(f"{source} has the {key} {others[0]} for images, not {list(own)}: {remedy}")
    return None


def read_settings(text: str) -> Settings | None:
    """Return all values of the keys that matter, of `dict(key=value)` and `{"key": value}`; None if it is no Python."""
    settings: Settings = {
        key: [] for key in ("style", "mean", "std", "to_rgb", "bgr_to_rgb", "norm_on_bbox", "centerness_on_reg")
    }
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        pairs: list[tuple[Any, ast.expr]] = []
        if isinstance(node, ast.keyword):
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.Dict):
            pairs = [(key.value, value) for key, value in zip(node.keys, node.values) if isinstance(key, ast.Constant)]
        for key, value in pairs:
            if key in settings:
                _append_literal(settings[key], value, is_list=key in ("mean", "std"))
    return settings


def _append_literal(values: list[Any], node: ast.expr, is_list: bool) -> None:
    """Append the value of a literal of the right kind, once; leave anything else out."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return
    if isinstance(value, list | tuple) == is_list and value not in values:
        values.append(list(value) if is_list else value)
