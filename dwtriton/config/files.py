"""Config files as plain values: finding them, joining them with their bases, and overrides from the command line."""

import tomllib
from pathlib import Path
from typing import Any

from dwtriton.core.errors import UserError
from dwtriton.core.text import nearest

CONFIG_FOLDER = Path(__file__).parent / "presets"


class ConfigError(UserError):
    """A config that cannot be used: names the key or file and the remedy."""


def config_names() -> list[str]:
    """Names of the configs shipped with the package, sorted."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.toml"))


def read_config_file(name: str | Path) -> dict[str, Any]:
    """Values of a shipped config or of a file, over those of its bases. Raises ConfigError if one cannot be read."""
    return _read(_find(name, Path.cwd()))


def apply_override(values: dict[str, Any], override: str) -> None:
    """Write one `section.key=value` into the nested dict `values`."""
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not all((*sections, last)):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, it has no keys")
    values[last] = value


def _find(name: str | Path, folder: Path) -> Path:
    """The file of a shipped config's name or of a path relative to `folder`."""
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
    """Values of a config file over those of its base, but for what was published of the base."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"config {path}: its chain of bases comes back to itself")
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
    merged = dict(base)
    for key, value in changes.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged
