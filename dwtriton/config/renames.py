"""Renamed config keys: an error that names the new key in a file, upgraded in a checkpoint."""

from collections.abc import Iterator
from typing import Any

RENAMED = {  # old key or section: new one
    "data.test_short_side": "inference.short_side",
    "data.test_long_side": "inference.long_side",
    "loss.cls_pos": "loss.weight_cls_pos",
    "loss.loc": "loss.weight_loc",
    "loss.cls_neg": "loss.weight_cls_neg",
    "loss.ignore_crowd": "data.crowd",
    "test": "inference",
}
NEW_VALUES = {"loss.ignore_crowd": {False: "background", True: "ignore"}}  # by old key, where values changed too


def renamed_keys(values: dict[str, Any]) -> dict[str, str]:
    """Return {old key: new key, with its values if they changed too} for all renamed keys of the nested `values`."""
    renamed = {".".join(path): ".".join(new_path(path)) for path, _ in _leaves(values) if new_path(path) != path}
    for old in renamed.keys() & NEW_VALUES.keys():
        values_now = ", ".join(f"{str(value).lower()} is now {new}" for value, new in NEW_VALUES[old].items())
        renamed[old] += f" ({values_now})"
    return renamed


def upgrade_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return the nested dict `values` with every renamed key under its new name, with its new value."""
    upgraded: dict[str, Any] = {}
    for path, value in _leaves(values):
        *sections, name = new_path(path)
        section = upgraded
        for part in sections:
            section = section.setdefault(part, {})
        new_values = NEW_VALUES.get(".".join(path))
        section[name] = new_values.get(value, value) if new_values else value
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
