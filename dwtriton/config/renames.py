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
    return {key: new_key(key) for key, _ in _leaves(values) if new_key(key) != key}


def upgrade_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return the nested dict `values` with every renamed key under its new name."""
    upgraded: dict[str, Any] = {}
    for key, value in _leaves(values):
        *sections, name = new_key(key).split(".")
        section = upgraded
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return upgraded


def new_key(key: str) -> str:
    """Return the current name of a dotted key."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every value that is not a table."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
