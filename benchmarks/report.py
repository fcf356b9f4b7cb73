"""Show recorded results: the tables in README and docs, and the plots.

    python -m benchmarks.report

fills every block between `<!-- results/NAME.json -->` or `<!-- figures of GPUs -->` and `<!-- end -->` on a page, and
redraws the plots.
"""

import json
import re
from pathlib import Path
from textwrap import fill

from matplotlib.figure import Figure

from benchmarks import assigners_report, cases_report, losses_report, predict_report, train_report
from benchmarks.gpu_report import gpu_table
from benchmarks.methods import METHODS
from benchmarks.recording import RESULTS, caption, save_figure
from dwtriton.core.files import write_text

HERE = Path(__file__).parent
TABLE_HEAD = "| images | logits | boxes an image |"
BLOCK = re.compile(r"(<!-- (results/[\w/-]+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)
GPU_BLOCK = re.compile(r"(<!-- (?:important )?figures of GPUs -->\n).*?(<!-- end -->)", re.DOTALL)

COLORS = {
    "triton": "tab:red",
    "eager": "tab:blue",
    "compiled": "tab:cyan",
    "fcos": "tab:gray",
    "released": "tab:orange",
}


def filled(page: str) -> str:
    """Return the text of a page in which every block shows what its file holds."""

    def with_table(block: re.Match) -> str:
        results = json.loads((HERE / block[2]).read_text(encoding="utf-8"))
        table, _ = VIEWS[Path(block[2]).parent.name]
        return f"{block[1]}{caption(results)}:\n\n{table(results)}\n\n{block[3]}"

    page = GPU_BLOCK.sub(lambda block: f"{block[1]}{gpu_table(important='important' in block[1])}\n\n{block[2]}", page)
    return BLOCK.sub(with_table, page)


def markdown_table(results: dict) -> str:
    """Return a table of milliseconds and, in brackets, extra MB of every method; a dash where one was skipped."""
    methods = _methods(results)
    first = methods[0]
    lines = [
        f"{TABLE_HEAD} {' | '.join(methods)} | floor / {first} |",
        "|---" * (4 + len(methods)) + "|",
    ]
    for dtype, batch in _groups(results):
        rows = {(r["method"], r["boxes"]): r for r in results["rows"] if (r["dtype"], r["batch"]) == (dtype, batch)}
        for boxes in sorted({boxes for _, boxes in rows}):
            cells = [_cell(rows.get((method, boxes), {})) for method in methods]
            share = rows.get((first, boxes), {}).get("share", 0)
            lines.append(f"| {batch} | {dtype} | {boxes} | {' | '.join(cells)} | {share:.0%} |")
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """Plot time and memory against boxes, one line a method, one row of panels for each dtype and batch."""
    groups = _groups(results)
    figure = Figure(figsize=(10, 0.8 + 3.4 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 2, squeeze=False, sharex=True)
    counts = sorted({r["boxes"] for r in results["rows"] if "ms" in r})
    for (dtype, batch), (time_panel, memory_panel) in zip(groups, axes):
        rows = [r for r in results["rows"] if (r["dtype"], r["batch"]) == (dtype, batch) and "ms" in r]
        for method in _methods(results):
            mine = [r for r in rows if r["method"] == method]
            style = {"color": COLORS[method], "marker": "o", "markersize": 4, "label": f"{method}: {METHODS[method]}"}
            style["linestyle"] = ":" if method == "compiled" else "-"  # it often lies on eager
            time_panel.plot([r["boxes"] for r in mine], [r["ms"] for r in mine], **style)
            known = [r for r in mine if "extra_mb" in r]
            if known:
                memory_panel.plot([r["boxes"] for r in known], [max(r["extra_mb"], 0.01) for r in known], **style)
        floor = "three trips of the logits at the speed of a copy"
        time_panel.axhline(rows[0]["floor_ms"], color="black", linestyle="--", linewidth=1, label=floor)
        time_panel.set_title(f"Loss and gradient of {batch} images, {dtype}: ms", fontsize=10)
        memory_panel.set_title("Memory beyond inputs and gradients: MB", fontsize=10)
        for panel in (time_panel, memory_panel):
            panel.set(xscale="log", yscale="log" if panel.lines else "linear", xticks=counts, xticklabels=counts)
            panel.minorticks_off()
            panel.yaxis.set_major_formatter("{x:g}")
            panel.grid(alpha=0.3)
            panel.set_visible(bool(panel.lines))
    for panel in axes[-1]:
        panel.set_xlabel("boxes an image")
    case = results["case"]
    figure.suptitle(
        f"{case['height']}x{case['width']}, {case['classes']} classes\n{fill(caption(results), 150)}", fontsize=9
    )
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False
    )
    save_figure(figure, path)


def _methods(results: dict) -> list[str]:
    """Return the methods in the results, in the order of METHODS."""
    present = {row["method"] for row in results["rows"]}
    return [method for method in METHODS if method in present]


def _groups(results: dict) -> list[tuple[str, int]]:
    """Return dtype and batch of each row of panels and each block of the table."""
    return list(dict.fromkeys((row["dtype"], row["batch"]) for row in results["rows"]))


def _cell(row: dict) -> str:
    extra = f" ({row['extra_mb']:g})" if "extra_mb" in row else ""
    return f"{row['ms']:g}{extra}" if "ms" in row else "-"


VIEWS = {  # by the folder of the results: their table and their plot
    "results": (markdown_table, draw),
    "loss_cases": (cases_report.markdown_table, cases_report.draw),
    "train_step": (train_report.markdown_table, train_report.draw),
    "predict": (predict_report.markdown_table, predict_report.draw),
    "assigners": (assigners_report.markdown_table, assigners_report.draw),
    "losses_on_shapes": (losses_report.markdown_table, losses_report.draw),
}


def main() -> None:
    for page in (HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))):
        write_text(page, filled(page.read_text(encoding="utf-8")))
    for folder, (_, plot) in VIEWS.items():
        for file in sorted((RESULTS / folder.replace("results", "")).glob("*.json")):
            plot(json.loads(file.read_text(encoding="utf-8")), file.with_suffix(".png"))


if __name__ == "__main__":
    main()
