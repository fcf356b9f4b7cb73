"""What README and docs say must hold: their Python runs, their tables and config examples match the package."""

import ast
import json
import re
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

from benchmarks import (
    assigners_report,
    cases_report,
    gpu_report,
    losses_report,
    memory,
    predict_report,
    report,
    train_report,
)
from dwtriton.config.load import config_names, load_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = [path.as_posix() for top in ("dwtriton", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")]
MADE_LATER = {
    "benchmarks/results/tests/",
    "dwtriton/kernels/tuned/GPU.json",
    "dual_weight_head.py",
    "NAME.py",
}  # by `make gpu` and by readers


def blocks(language):
    """(page, code) of every fenced block in a language."""
    found = []
    for page in PAGES:
        for code in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL):
            found.append(pytest.param(code, id=f"{page.name}-{len(found)}"))
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(code):
    exec(compile(code, "example", "exec"), {})


@pytest.mark.parametrize("code", [*blocks("py"), *blocks("python")])
def test_python_examples_import_what_exists(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "dwtriton":
            home = import_module(node.module)
            for name in node.names:
                assert hasattr(home, name.name), f"{node.module} has no {name.name}"


@pytest.mark.parametrize("code", blocks("toml"))
def test_config_examples_load(code, tmp_path):
    (tmp_path / "example.toml").write_text(code)
    load_config(tmp_path / "example.toml")


def test_the_table_of_configs_is_complete_and_right():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.+?) \|$", PAGES[0].read_text(), re.MULTILINE))
    assert rows.keys() == set(config_names())
    for name, published in rows.items():
        cfg = load_config(name)
        unpublished = "(generated data)" if cfg.data.shapes else "(none)"
        assert published == (f"{cfg.published_ap:.1f}" if cfg.published_ap else unpublished)


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_headings_and_named_files_exist(page):
    text = page.read_text()
    for target, _, heading in re.findall(r"\]\((?!http)([^)#]*)(#([^)]+))?\)", text):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not heading or heading in headings(linked), f"{target}#{heading}"
    for name in re.findall(r"`((?:dwtriton|tests|benchmarks|docs)/[\w/.]+)`", text):
        assert (ROOT / name).exists() or name in MADE_LATER, name
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert name in MADE_LATER or any(file.endswith(f"/{name}") for file in FILES), name
    for name in re.findall(r"`(dwtriton\.[\w.]+\w)(?:`|\()", text):
        resolve_name(name)


def test_the_readme_names_every_room_once():
    table = PAGES[0].read_text().partition("## Where things are")[2]
    cells = re.findall(r"^\| `dwtriton/(.+?) \|", table, re.MULTILINE)  # "core/`" or "predict/`, `export.py`"
    named = [name for cell in cells for name in re.findall(r"[\w.]+/?", cell)]
    rooms = [path for path in (ROOT / "dwtriton").iterdir() if not path.name.startswith("_")]
    assert sorted(named) == sorted(path.name + "/" * path.is_dir() for path in rooms if path.suffix in ("", ".py"))


def test_benchmark_tables_show_the_recorded_results():
    """Tables stand in blocks that name their file of results and hold just what `benchmarks/report.py` writes."""
    assert "<!-- results/cpu.json -->" in (ROOT / "docs" / "loss.md").read_text()
    for page in PAGES:
        text = page.read_text()
        assert text == report.filled(text), "run python -m benchmarks.report"
        views = report, train_report, predict_report, losses_report, cases_report, assigners_report
        heads = [view.TABLE_HEAD for view in views]
        assert sum(map(text.count, heads)) == len(report.BLOCK.findall(text))


def test_the_tables_of_gpus_show_recorded_figures_and_what_is_owed():
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert gpu_report.gpu_table() in page
    assert gpu_report.gpu_table(important=True) in PAGES[0].read_text()
    figure = gpu_report.FIGURES[0]
    rows = [figure.row | {"ms": 0.25}]
    assert figure.of({"rows": rows}) == "0.25 ms"
    assert figure.of({"rows": rows, "note": "earlier"}) == "0.25 ms\\*"
    assert figure.of({"rows": [figure.row | {"skipped": "too little memory"}]}) == "too little memory"
    assert figure.of({"rows": [figure.row | {"boxes": 8, "ms": 0.25}]}) == gpu_report.OWED


def test_the_readme_quotes_the_recorded_results():
    rows = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())["rows"]
    of = {(row["method"], row["boxes"]): row for row in rows}
    ratios = [of["released", boxes]["ms"] / of["eager", boxes]["ms"] for boxes in (20, 100, 1000)]
    memory = [f"{of[name, boxes]['extra_mb']:g} MB" for boxes in (100, 1000) for name in ("eager", "released")]
    readme = PAGES[0].read_text()
    assert " / ".join(f"{ratio:.0f}x" for ratio in ratios) + " faster" in readme
    assert "{} against {} / {} against {}".format(*memory) in readme


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r50_1x", "r50_dcn_refine_ms_2x"])
def test_the_memory_table_shows_what_the_networks_keep(name):
    page = (ROOT / "docs" / "reproduce.md").read_text()
    assert f"| {' | '.join(memory.COLUMNS)} |" in page
    assert f"| {' | '.join(memory.row(name))} |" in page


def test_every_config_of_coco_has_its_command_and_its_memory_in_the_reproduction_page():
    page = (ROOT / "docs" / "reproduce.md").read_text()
    for name in config_names():
        cfg = load_config(name)
        if cfg.data.shapes is None and name != "small":  # which is for small data, not for COCO
            published = "-" if cfg.published_ap is None else f"{cfg.published_ap:.1f}"
            command = f"-m dwtriton.train --cfg {name} --data ~/coco --out runs/{name}`"
            assert f"{command} | {cfg.schedule.epochs} epochs | {published} |" in page
            assert f"| `{name}` |" in page
