"""The package says what it is; a wheel and an sdist of it work outside of the repository."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import dwtriton

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USER_FILE = """\
from dwtriton import DualWeightLoss, __version__

loss = DualWeightLoss(strides=(8, 16))
reveal_type(loss)
reveal_type(__version__)
DualWeightLoss(strides="eight")
"""


def test_the_version_is_that_of_the_project_everywhere():
    assert dwtriton.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_what_a_package_page_shows_has_absolute_links_and_names_every_extra():
    page = (ROOT / PROJECT["readme"]).read_text()
    links = [*re.findall(r"\]\(([^)]*)\)", page), *PROJECT["urls"].values()]
    assert links
    assert all(link.startswith("https://") for link in links)
    assert set(re.findall(r"^\| `dwtriton\[(\w+)\]`", page, re.MULTILINE)) == set(PROJECT["optional-dependencies"])


def test_type_checkers_see_every_public_name():
    (block,) = (node for node in ast.parse((ROOT / "dwtriton" / "__init__.py").read_text()).body if _is_block(node))
    imported = {
        alias.asname: f"{node.module}.{alias.name}" for node in block.body[:-1] for alias in node.names
    }  # the last line declares __version__
    assert imported == {name: f"{module}.{name}" for name, module in dwtriton._MODULES.items()}


def _is_block(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_everything_of_an_extra_is_pinned():
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text().lower(), re.MULTILINE))
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in [*PROJECT["dependencies"], *extras]} - {"dwtriton"}
    assert names <= {name.replace("_", "-") for name in pinned} | pinned


def run(*command, cwd, path=""):
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    run("-m", "pip", "install", "--quiet", "--target", folder / "tools", "setuptools>=77", cwd=folder)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    copy = folder / "copy"  # setuptools leaves files behind
    copy.mkdir()
    subprocess.run(f"git archive HEAD | tar -x -C {copy}", shell=True, cwd=ROOT, check=True)
    run("-c", build, cwd=copy, path=folder / "tools")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return archive, folder / archive.name.removesuffix(".tar.gz")


@pytest.mark.slow
def test_the_tests_of_an_sdist_run(sdist):
    """Everything of the repository is in it; some tests that read golden files, pages and the oracle pass there."""
    _, folder = sdist
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    missing = [name for name in listed if not (folder / name).exists() and not name.startswith(".ci/")]
    assert not missing
    tests = ["tests/core", "tests/reference/test_cases.py", "tests/test_architecture.py", "tests/test_citations.py"]
    assert " passed" in run("-m", "pytest", *tests, cwd=folder, path=folder)


@pytest.mark.slow
def test_a_wheel_works_in_another_folder(sdist, tmp_path):
    archive, _ = sdist
    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, archive, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    expected = {"dwtriton/py.typed", "dwtriton/config/presets/r50_1x.toml", "dwtriton/evaluate/report.html.j2"}
    assert expected <= set(names)
    assert {name.split("/")[0] for name in names} == {"dwtriton", wheel.name.split("-py3")[0] + ".dist-info"}
    site = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    where = run("-c", "import dwtriton; print(dwtriton.__file__, dwtriton.__version__)", cwd=tmp_path, path=site)
    assert where.split() == [str(site / "dwtriton" / "__init__.py"), PROJECT["version"]]
    assert "r50_refine_1x" in run("-m", "dwtriton", "train", "--cfg", "list", cwd=tmp_path, path=site)
    assert "optimizer.lr" in run("-m", "dwtriton.config", "settings", cwd=tmp_path, path=site)

    pytest.importorskip("mypy", reason="mypy is not installed: pip install 'dwtriton[test]'")
    (tmp_path / "mine.py").write_text(USER_FILE)
    search = [str(site), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search), "MYPYPATH": str(site)}
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports", "mine.py"]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert 'mine.py:4: note: Revealed type is "dwtriton.losses.dual_weight.DualWeightLoss"' in found
    assert 'mine.py:5: note: Revealed type is "str"' in found.replace("builtins.", "")
    assert "mine.py:6: error" in found
