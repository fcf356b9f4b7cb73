"""Renamed config keys: an error that names the new key in a file, upgraded in a checkpoint."""

from collections.abc import Iterator
from typing import Any

RENAMED = {  # old key or section: new one
    "data.test_short_side": "inference.short_side",
    "data.test_long_side": "inference.long_side",
    "loss.cls_pos": "loss.weight_cls_pos",
    "loss.loc": "loss.weight_loc",
    "loss.cls_neg": "loss.weight_cls_neg",
    "test": "inference",
}


def renamed_keys(values: dict[str, Any]) -> dict[str, str]:
    """Return {old key: new key} for every dotted key of the nested dict `values` that has been renamed."""
    return {".".join(path): ".".join(new_path(path)) for path, _ in _leaves(values) if new_path(path) != path}


def upgrade_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return the nested dict `values` with every renamed key under its new name."""
    upgraded: dict[str, Any] = {}
    for path, value in _leaves(values):
        *sections, name = new_path(path)
        section = upgraded
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return upgraded


def new_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the current path of a key: its sections and its name. A name may have dots, as that of a class may."""
    for old, new in RENAMED.items():
        names = tuple(old.split("."))
        if path[: len(names)] == names:
            return (*new.split("."), *path[len(names) :])
    return path


def _leaves(values: dict[str, Any], sections: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, value) for every value that is not a table."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*sections, name))
        else:
            yield (*sections, name), value
