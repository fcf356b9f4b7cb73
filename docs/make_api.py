"""Write docs/api.md, the page of all public names, from their docstrings: `python docs/make_api.py`."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "api.md"
HEAD = """\
# Reference of the public names

Written by `python docs/make_api.py` from the docstrings. What is public, and how names change:
[versions.md](versions.md). The commands are in [commands.md](commands.md), the keys of a config in
[settings.md](settings.md).
"""
SECTIONS = {  # module: names, None for its __all__
    "dwtriton": None,
    "dwtriton.losses": None,
    "dwtriton.explain": None,
    "dwtriton.model.detector": ["DualWeightDetector"],
    "dwtriton.inference.ready": ["ReadyDetector"],
    "dwtriton.evaluate.coco_metrics": ["Evaluation", "evaluate"],
    "dwtriton.evaluate.tide": ["Analysis", "Detection", "Truth", "analyse"],
    "dwtriton.evaluate.report": ["report_html"],
    "dwtriton.train.trainer": ["Trainer"],
}


def page() -> str:
    """Return the page; a name that two modules offer is described once."""
    described: dict[int, str] = {}
    lines = [HEAD]
    for module, names in SECTIONS.items():
        home = import_module(module)
        lines.append(f"## {module}\n")
        for name in names or [name for name in home.__all__ if name != "__version__"]:
            thing = getattr(home, name)
            first = described.setdefault(id(thing), f"{module}.{name}")
            if first == f"{module}.{name}":
                lines += [f"### {name}\n", *_description(thing)]
            else:
                lines.append(f"`{module}.{name}` is `{first}`.\n")
    return "\n".join(lines)


def _description(thing: Any) -> Iterator[str]:
    """Yield signature and docstring; of a class also its fields and its public methods."""
    if not inspect.isclass(thing):
        yield from (f"```text\n{_signature(thing)}\n```\n", _text(thing))
        return
    fields = _fields(thing)
    constructor = fields or _signature(thing.__init__).replace("__init__(self, ", f"{thing.__name__}(")
    yield from (f"```text\n{constructor.removesuffix(' -> None')}\n```\n", _text(thing))
    for name, method in inspect.getmembers(thing, inspect.isfunction):
        own = method.__module__.startswith("dwtriton.") and method.__doc__
        if own and (not name.startswith("_") or name in ("__call__",)):
            yield from (f"```text\n{thing.__name__}.{_signature(method)}\n```\n", _text(method))


def _signature(function: Any) -> str:
    """Return a function's head on one line, as it is written."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){result}"


def _fields(thing: type) -> str:
    """Return the lines of a class that declare its fields, with their comments; nothing for ordinary classes."""
    if not (hasattr(thing, "_fields") or hasattr(thing, "__dataclass_fields__")):
        return ""
    source = inspect.getsource(thing)
    (node,) = ast.parse(textwrap.dedent(source)).body
    return "\n".join(
        source.splitlines()[part.lineno - 1].strip() for part in node.body if isinstance(part, ast.AnnAssign)
    )


def _text(thing: Any) -> str:
    """Return the docstring, with links to the pages that it cites."""
    return re.sub(r"\bdocs/([\w-]+\.md(?:#[\w-]+)?)", r"[\1](\1)", inspect.getdoc(thing) or "") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
