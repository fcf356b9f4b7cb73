"""Citations of the specification in the code lead to a heading that exists, and constants on its pages to the code."""

import re
from pathlib import Path

import pytest

from dwtriton.config.load import flatten, load_config
from dwtriton.reference import formulas

ROOT = Path(__file__).parents[1]
CITATION = re.compile(r"docs/(\w[\w-]*\.md)(?:#([\w-]+))?")
FILES = [path for folder in ("dwtriton", "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing(text: str) -> list[str]:
    """Return the citations in a text whose page or heading does not exist."""
    found = CITATION.finditer(text)
    return [match.group() for match in found if not _exists(ROOT / "docs" / match[1], match[2])]


def _exists(page: Path, anchor: str | None) -> bool:
    return page.exists() and (anchor is None or anchor in slugs(page))


def test_every_cited_heading_exists():
    wrong = {str(path.relative_to(ROOT)): bad for path in FILES if (bad := missing(path.read_text()))}
    wrong.pop("tests/test_citations.py", None)
    assert not wrong


def test_the_specification_is_cited_where_it_is_computed():
    text = "\n".join(path.read_text() for path in FILES)
    cited = {match[2] for match in CITATION.finditer(text) if match[1] in ("method.md", "recipe.md")}
    assert {"candidate-bag", "localisation", "positive-weight", "negative-weight", "normalisers", "gradients"} <= cited
    assert {"model", "data", "optimiser", "testing"} <= cited


def test_no_citation_is_left_of_documents_that_are_not_here():
    old = re.compile(r"\((?:the )?(?:spec|recipe|specification)(?:,| section)")
    assert [str(path.relative_to(ROOT)) for path in FILES if old.search(path.read_text())] == []


@pytest.mark.parametrize("citation", ["docs/method.md#no-heading", "docs/nothing.md", "docs/recipe.md#Data"])
def test_a_wrong_citation_is_found(citation):
    assert missing(f"as in {citation}.") == [citation]
    assert missing("as in docs/method.md#candidate-bag and docs/recipe.md") == []


def test_the_table_of_constants_has_the_values_of_the_code():
    page = (ROOT / "docs" / "method.md").read_text()
    section = page.partition("\n## Constants\n")[2].partition("\n## ")[0]
    table = {name: float(value) for value, name in re.findall(r"^\| (\S+) \| `([A-Z_]+)` \|", section, re.MULTILINE)}
    code = {name: value for name, value in vars(formulas).items() if name.isupper()}
    assert table == code


def test_the_recipe_names_config_keys_and_constants_that_exist():
    page = (ROOT / "docs" / "recipe.md").read_text()
    keys = set(re.findall(r"`((?:data|backbone|head|loss|optimizer|schedule|inference)\.\w+)", page))
    assert len(keys) > 20
    assert keys <= flatten(load_config("r50_1x")).keys()
    code = "\n".join(path.read_text() for path in FILES if path.is_relative_to(ROOT / "dwtriton"))
    constants = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", page))
    assert {"MIN_IMAGE_SIDE", "MIN_BOX_SIDE", "REFERENCE_BATCH"} <= constants
    assert constants <= set(re.findall(r"^([A-Z_]+) = ", code, re.MULTILINE))
