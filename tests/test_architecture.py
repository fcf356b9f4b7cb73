"""The rooms of the package import each other in one direction only, and each says what it is for."""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("core", "reference", "kernels", "losses", "model", "checkpoints", "inference", "evaluate")  # left to right
COMMANDS = ("train", "predict", "explain", "export", "weights", "summary", "tune")  # none imports another
STARTERS = {"", "__main__", "completion"}  # the package itself and what knows all commands
THIRD_PARTIES_OF_CORE = {"torch", "numpy"}
MAX_ENTRIES = 22  # at the top of the package
MAX_LINES = 300
SIDE_ROOMS = {"config", "console", "data"}
ALLOWED = {layer: {*LAYERS[: i + 1]} for i, layer in enumerate(LAYERS)}
for layer in ("model", "checkpoints"):
    ALLOWED[layer] |= {"config"}
for layer in ("inference", "evaluate"):
    ALLOWED[layer] |= SIDE_ROOMS
for layer in COMMANDS:
    ALLOWED[layer] = {layer, *LAYERS, *SIDE_ROOMS}
ALLOWED["config.__main__"] = {"core", "config", "console"}  # the command, which the room itself does not know
ALLOWED |= {"config": {"core", "config"}, "console": {"core", "config", "console"}, "data": {"core", *SIDE_ROOMS}}


class Import(NamedTuple):
    """A module that a line of a file imports, by its full dotted name."""

    file: str  # relative to the root of the repository
    line: int
    module: str


def module_name(file: str) -> str:
    """Return `dwtriton.core.points` for `dwtriton/core/points.py`, and the package for its `__init__.py`."""
    parts = file.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: str, source: str, modules: set[str]) -> Iterator[Import]:
    """Yield what a file imports anywhere in it; `modules` are those of the package.

    `from a import b` imports `a.b` where that is a module, else `a`. Calls of `import_module` and `__import__`, and
    dotted names of the package in strings that such calls may get, count as imports; relative ones are resolved.
    """
    tree = ast.parse(source)
    dynamic = any(_function(node) in ("import_module", "__import__") for node in ast.walk(tree))
    package = module_name(file).split(".")
    if not file.endswith("__init__.py"):
        package = package[:-1]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parent = ".".join([*base, *filter(None, [node.module])])
            found = [f"{parent}.{alias.name}" for alias in node.names]
            names = [name if name in modules else parent for name in found]
        elif dynamic and isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in modules:
            names = [node.value]
        yield from (Import(file, node.lineno, name) for name in names)


def _function(node: ast.AST) -> str | None:
    """Return the last part of a called function's name."""
    if not isinstance(node, ast.Call):
        return None
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def room(module: str) -> str:
    """Return the part of a module's name below the package: `core` for `dwtriton.core.points`."""
    return [*module.split("."), ""][1]


def broken_rules(sources: Mapping[str, str]) -> list[str]:
    """Return a line "file:line: rule" for each import that breaks one; `sources` are texts by file name."""
    modules = {module_name(file) for file in sources}
    found = [entry for file, text in sources.items() for entry in imports(file, text, modules)]
    broken = [f"{file}:{line}: {rule}" for file, line, name in found if (rule := _broken_rule(file, name))]
    return broken + circles(found)


def _broken_rule(file: str, name: str) -> str | None:
    importer, package = room(module_name(file)), name.split(".")[0]
    if module_name(file) == "dwtriton.config.__main__":
        importer = "config.__main__"
    if package != "dwtriton":
        foreign = package not in sys.stdlib_module_names | THIRD_PARTIES_OF_CORE
        return f"core imports only torch and numpy, not {package}" if importer == "core" and foreign else None
    imported = room(name)
    if importer in STARTERS:
        return None
    if importer not in ALLOWED:
        return f"there is no rule for the room {importer}"
    if imported in ALLOWED[importer]:
        return None
    if imported == "train":
        return f"nothing imports train, but {importer} does"
    return f"{importer} may import {', '.join(sorted(ALLOWED[importer] - {importer})) or 'no room'}, not {name}"


def circles(found: list[Import]) -> list[str]:
    """Return a line for each import through which a module imports itself; `__init__` files count like others."""
    graph: dict[str, dict[str, Import]] = {}
    for entry in found:
        if entry.module != module_name(entry.file):
            graph.setdefault(module_name(entry.file), {}).setdefault(entry.module, entry)
    broken, done = [], set()

    def visit(module: str, path: list[str]) -> None:
        for imported, entry in graph.get(module, {}).items():
            if imported in path:
                circle = " -> ".join([*path[path.index(imported) :], imported])
                broken.append(f"{entry.file}:{entry.line}: no circles of imports, but {circle}")
            elif imported not in done:
                visit(imported, [*path, imported])
        done.add(module)

    for module in list(graph):
        if module not in done:
            visit(module, [module])
    return broken


def sources() -> dict[str, str]:
    """Return the text of every Python file of the package by its name."""
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "dwtriton").rglob("*.py"))}


def test_every_import_follows_the_rules():
    broken = broken_rules(sources())
    assert not broken, "\n" + "\n".join(broken)


def test_the_package_has_at_most_22_entries_at_its_top():
    entries = [path.name for path in (ROOT / "dwtriton").iterdir() if not path.name.startswith("__")]
    assert len([name for name in entries if name != "py.typed"]) <= MAX_ENTRIES, sorted(entries)


@pytest.mark.parametrize("folder", sorted({Path(file).parent for file in sources()}), ids=str)
def test_every_room_says_in_one_sentence_what_it_is_for(folder):
    file = ROOT / folder / "__init__.py"
    assert file.exists(), f"{folder}: no __init__.py"
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    assert docstring.endswith("."), f"{file}: no docstring that is a sentence"
    assert "\n\n" not in docstring, f"{file}: more than a sentence"
    assert ". " not in docstring.replace("\n", " "), f"{file}: more than a sentence"


def test_no_file_is_longer_than_300_lines():
    files = [path for folder in ("dwtriton", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    long = {str(path.relative_to(ROOT)): count for path in files if (count := _lines(path)) > MAX_LINES}
    assert not long


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


BROKEN = {
    "upwards": ("core/a.py", "from dwtriton.losses import b", "core may import no room, not dwtriton.losses.b"),
    "skipping upwards": ("reference/a.py", "import dwtriton.kernels.b", "reference may import core, not"),
    "lazily": ("kernels/a.py", "def f():\n    from dwtriton.data import b", ":2: kernels may import"),
    "by a string": ("losses/a.py", "import_module('dwtriton.config.b')", "not dwtriton.config.b"),
    "by a table of strings": ("model/a.py", "T = {1: 'dwtriton.data.b'}\nf = import_module(T[1])", ":1: model may"),
    "relatively": ("core/a.py", "from ..train import b", "nothing imports train"),
    "relatively from an __init__": ("core/__init__.py", "from ..model import b", "not dwtriton.model.b"),
    "train from a command": ("explain/a.py", "from dwtriton.train.b import c", "nothing imports train"),
    "train from data": ("data/a.py", "import dwtriton.train.b", "nothing imports train"),
    "data from the model": ("model/a.py", "from dwtriton.data.b import c", "model may import"),
    "console from config": ("config/a.py", "from dwtriton.console import b", "config may import core, not"),
    "a command from a room": ("inference/a.py", "from dwtriton.predict import b", "not dwtriton.predict.b"),
    "the whole package": ("core/a.py", "import dwtriton", "not dwtriton"),
    "a third party": ("core/a.py", "def f():\n    import rich.console", ":2: core imports only torch and numpy"),
    "one command from another": ("predict/a.py", "import dwtriton.explain.b", "not dwtriton.explain.b"),
    "a room without a rule": ("cellar/a.py", "import dwtriton.core.b", "no rule for the room cellar"),
}


def made_up(file: str, source: str) -> dict[str, str]:
    """Return sources of a package in which every room has a module `b`, and one file is given."""
    return {f"dwtriton/{name}/{part}.py": "" for name in ALLOWED for part in ("__init__", "b")} | {
        "dwtriton/__init__.py": "",
        f"dwtriton/{file}": source,
    }


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_names_file_line_and_rule(name):
    file, source, message = BROKEN[name]
    (broken,) = broken_rules(made_up(file, source))
    assert broken.startswith(f"dwtriton/{file}:"), broken
    assert message in broken


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("losses/a.py", "from dwtriton import reference\nfrom dwtriton.core.b import c\nimport rich, sys, torch"),
        ("core/a.py", "import os, numpy.linalg\nfrom torch import Tensor\nfrom . import b"),
        ("train/a.py", "from dwtriton.train import b\nfrom dwtriton.evaluate.b import c\nimport dwtriton.data.b"),
        ("__main__.py", "import_module('dwtriton.train.b')"),
        ("model/a.py", "from dwtriton.config.b import c\nHELP = 'see dwtriton.data.b'"),
    ],
)
def test_what_is_allowed_is_not_reported(file, source):
    assert broken_rules(made_up(file, source)) == []


def test_circles_are_found_through_several_modules_and_lazy_imports():
    made = {
        "dwtriton/__init__.py": "",
        "dwtriton/core/__init__.py": "",
        "dwtriton/core/a.py": "import dwtriton.core.b",
        "dwtriton/core/b.py": "\n\ndef f():\n    from dwtriton.core.c import x",
        "dwtriton/core/c.py": "from dwtriton.core import a",
    }
    (broken,) = broken_rules(made)
    assert "no circles of imports" in broken
    assert broken.count(" -> ") == 3
