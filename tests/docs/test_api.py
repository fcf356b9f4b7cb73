"""docs/api.md is what docs/make_api.py writes, and has every public name with its docstring."""

import runpy
from importlib import import_module
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_current():
    assert runpy.run_path(str(DOCS / "make_api.py"))["page"]() == (DOCS / "api.md").read_text(), "run docs/make_api.py"


def test_every_public_name_is_on_the_page_and_described():
    page = (DOCS / "api.md").read_text()
    for module in ("dwtriton", "dwtriton.losses", "dwtriton.explain"):
        home = import_module(module)
        for name in set(home.__all__) - {"__version__"}:
            assert f"### {name}\n" in page, name
            assert getattr(home, name).__doc__.splitlines()[0].partition("docs/")[0].rstrip("(") in page
