"""Load configs: TOML files merged with their bases, changed by overrides and checked against the schema."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from dwtriton.config.kinds import MAY_CHANGE, Section
from dwtriton.config.renames import renamed_keys
from dwtriton.config.schema import Config, DataConfig, ShapesConfig
from dwtriton.core.errors import UserError
from dwtriton.core.text import nearest

CONFIG_FOLDER = Path(__file__).parent / "presets"
MAX_SHOWN = 80  # characters of a wrong value in its error
MAX_DEPTH = 20  # of tables
MACHINE_KEYS = frozenset({"data.root", "data.workers"})  # may differ between the machines of a job


def config_names() -> list[str]:
    """Return the names of the shipped configs, sorted."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.toml"))


def load_config(name: str | Path, overrides: Sequence[str] = (), data_root: Path | None = None) -> Config:
    """Read a config by name (`"r50_1x"`) or file, apply `overrides` (`"optimizer.lr=0.02"`), check every key.

    A file may start from another with `base = "NAME"` (or a path relative to itself) and then holds only what differs.
    Values of overrides are TOML; what is not valid TOML is taken as a string. `data_root` replaces `data.root`.
    Raises UserError for an unknown name or key, naming the nearest valid one, for a wrong value and an unreadable file.
    """
    if not isinstance(name, str | Path):
        raise UserError(f"name must be that of a config, or a path, not {name!r}")
    return _change(_read(_find(name, Path.cwd())), overrides, data_root, str(name))


def override_config(cfg: Config, overrides: Sequence[str] = (), data_root: Path | None = None) -> Config:
    """Return a config with some values changed, written as for `load_config`. Raises UserError."""
    return _change(cfg.model_dump(), overrides, data_root, f"with {', '.join(overrides)}")


def check_config(values: dict[str, Any], source: str) -> Config:
    """Return the config of nested values. Raises UserError for unknown keys and wrong values; it names `source`."""
    try:
        if renamed := renamed_keys(values):
            raise UserError(f"config {source}: " + "; ".join(f"{old} is now {new}" for old, new in renamed.items()))
        return Config.model_validate(values)
    except RecursionError:
        raise UserError(f"config {source}: it is nested too deeply") from None
    except ValidationError as error:
        raise UserError(f"config {source}: " + "; ".join(_explain(problem) for problem in error.errors())) from None


def dump_config(cfg: Config) -> str:
    """Return the whole config as TOML, which `load_config` reads back to an equal one."""
    return tomli_w.dumps(cfg.model_dump(mode="json", exclude_none=True))


def flatten(cfg: Section, fixed_only: bool = False, prefix: str = "") -> dict[str, Any]:
    """Return the values of a config by dotted key, `{"optimizer.lr": 0.01, ...}`; `fixed_only` omits `MayChange`."""
    flat: dict[str, Any] = {}
    for name, value in cfg:
        if isinstance(value, Section):
            flat |= flatten(value, fixed_only, f"{prefix}{name}.")
        elif not (fixed_only and MAY_CHANGE in type(cfg).model_fields[name].metadata):
            flat[prefix + name] = value
    return flat


def _find(name: str | Path, folder: Path) -> Path:
    """Return the file of a config's name, or of a path relative to `folder`."""
    if str(name) in config_names():
        return CONFIG_FOLDER / f"{name}.toml"
    path = folder / name
    if path.suffix != ".toml":
        raise UserError(
            f"there is no config {str(name)!r}{nearest(str(name), config_names())}; "
            "python -m dwtriton.train --cfg list prints them all"
        )
    if not path.is_file():
        raise UserError(f"config file {path} does not exist or is no ordinary file")
    return path.resolve()


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the values of a config file merged over those of its base, without the base's published AP."""
    if path in seen:
        raise UserError(f"config {path}: its bases form a cycle")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError as error:
        raise UserError(f"config {path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"config {path}: it is nested too deeply") from None
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        raise UserError(f"config {path} is not valid TOML: {error}") from None
    if "base" not in values:
        return values
    base = values.pop("base")
    if not isinstance(base, str):
        raise UserError(f"config {path}: base = {_shown(base)} must be the name of a config, or a path, in quotes")
    inherited = _read(_find(base, path.parent), (*seen, path))
    return _merge(inherited | {"published_ap": None}, values)


def _merge(base: Any, changes: Any, depth: int = MAX_DEPTH) -> Any:
    """Return `base` with `changes`, table by table; anything but two tables is replaced. Raises UserError."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    if not depth:
        raise UserError(f"config: it is nested too deeply, with more than {MAX_DEPTH} tables in each other")
    return base | {key: _merge(base.get(key), value, depth - 1) for key, value in changes.items()}


def _change(values: dict[str, Any], overrides: Sequence[str], data_root: Path | None, source: str) -> Config:
    for override in overrides:
        values = _merge(values, _parse(override))
    if data_root is not None and isinstance(values.get("data", {}), dict):  # or else it is an error
        values = _merge(values, {"data": {"root": data_root}})
    return check_config(values, source)


def _parse(override: str) -> dict[str, Any]:
    """Return the nested dict of one `section.key=value`."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UserError(f"override {_shown(override)} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except RecursionError:
        raise UserError(f"override of {key}: its value is nested too deeply") from None
    except ValueError:  # no TOML, or a number of thousands of digits
        value = text.strip()
    for name in reversed(names):
        value = {name: value}
    return value


def _explain(problem: Any) -> str:
    """Return one of pydantic's errors as one line."""
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path)
    if problem["type"] == "model_type":
        return f"{name} = {_shown(problem['input'])}: it is a section, whose keys are set as {name}.KEY"
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{name} = {_shown(problem['input'])}: {message[0].lower()}{message[1:]}"
    keys = list(flatten(Config(data=DataConfig(shapes=ShapesConfig()))))
    same_leaf = [key for key in keys if key.rpartition(".")[2] == path[-1]]
    return f"unknown key {name!r}{nearest(name, same_leaf or keys, cutoff=0.0 if same_leaf else 0.4)}"


def _shown(value: Any) -> str:
    """Return a wrong value as text, of a length that fits into an error."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        return f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
