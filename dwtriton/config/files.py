"""Config files as nested dicts: find them, merge them with their bases, apply overrides from the command line."""

import tomllib
from pathlib import Path
from typing import Any

from dwtriton.core.errors import UserError
from dwtriton.core.text import nearest

CONFIG_FOLDER = Path(__file__).parent / "presets"


class ConfigError(UserError):
    """A config that cannot be used; the message names the key or file and the remedy."""


def config_names() -> list[str]:
    """Return the names of the shipped configs, sorted."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.toml"))


def read_config_file(name: str | Path) -> dict[str, Any]:
    """Return the values of a shipped config or of a file, merged over its bases. Raises ConfigError."""
    return _read(_find(name, Path.cwd()))


def apply_override(values: dict[str, Any], override: str) -> None:
    """Write one `section.key=value` into the nested dict `values`; a value that is not TOML is a string."""
    key, equals, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not all((*sections, name)):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, it has no keys")
    values[name] = value


def _find(name: str | Path, folder: Path) -> Path:
    """Return the file of a config's name, or of a path relative to `folder`."""
    if str(name) in config_names():
        return CONFIG_FOLDER / f"{name}.toml"
    path = folder / name
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise ConfigError(f"config file {path} does not exist")
    raise ConfigError(
        f"there is no config {str(name)!r}{nearest(str(name), config_names())}; "
        "python -m dwtriton.train --cfg list prints them all"
    )


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the values of a config file merged over those of its base, without the base's published AP."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"config {path}: its bases form a cycle")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not valid TOML: {error}") from None
    base = values.pop("base", None)
    if base is None:
        return values
    inherited = _read(_find(base, path.parent), (*seen, path))
    inherited.pop("published_ap", None)
    return _merge(inherited, values)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`, table by table."""
    merged = dict(base)
    for key, value in changes.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged
