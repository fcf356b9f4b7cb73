"""What README and docs say must hold: their Python runs, their tables and config examples match the package."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import losses_report, memory, predict_report, report, train_report
from dwtriton.config.files import config_names
from dwtriton.config.schema import load_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:dwtriton|tests|benchmarks|docs)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name


def test_benchmark_tables_show_the_recorded_results():
    """Tables stand in blocks that name their file of results and hold just what `benchmarks/report.py` writes."""
    assert "<!-- results/cpu.json -->" in (ROOT / "docs" / "loss.md").read_text()
    for page in PAGES:
        text = page.read_text()
        assert text == report.filled(text), "run python -m benchmarks.report"
        heads = [view.TABLE_HEAD for view in (report, train_report, predict_report, losses_report)]
        assert sum(map(text.count, heads)) == len(report.BLOCK.findall(text))


def test_the_readme_quotes_the_recorded_results():
    rows = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())["rows"]
    of = {(row["method"], row["boxes"]): row for row in rows}
    ratios = [of["released", boxes]["ms"] / of["eager", boxes]["ms"] for boxes in (20, 100, 1000)]
    memory = [f"{of[name, boxes]['extra_mb']:g} MB" for boxes in (100, 1000) for name in ("eager", "released")]
    readme = PAGES[0].read_text()
    assert " / ".join(f"{ratio:.0f}x" for ratio in ratios) + " faster" in readme
    assert "{} against {} / {} against {}".format(*memory) in readme


@pytest.mark.parametrize("name", ["r50_1x", "r50_dcn_refine_ms_2x"])
def test_the_memory_table_shows_what_the_networks_keep(name):
    page = (ROOT / "docs" / "reproduce.md").read_text()
    assert f"| {' | '.join(memory.COLUMNS)} |" in page
    assert f"| {' | '.join(memory.row(name))} |" in page


def test_every_config_of_coco_has_its_command_and_its_memory_in_the_reproduction_page():
    page = (ROOT / "docs" / "reproduce.md").read_text()
    for name in config_names():
        cfg = load_config(name)
        if cfg.data.shapes is None:
            published = "-" if cfg.published_ap is None else f"{cfg.published_ap:.1f}"
            command = f"-m dwtriton.train --cfg {name} --data ~/coco --out runs/{name}`"
            assert f"{command} | {cfg.schedule.epochs} epochs | {published} |" in page
            assert f"| `{name}` |" in page
