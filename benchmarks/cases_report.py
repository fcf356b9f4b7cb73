"""Table and plot of the kernels on other inputs than those of the sweep."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.recording import caption, save_figure

TABLE_HEAD = "| case | ms | over the floor | us beyond it |"


def markdown_table(results: dict) -> str:
    """Return a table of times, extra memory and targets."""
    lines = [f"{TABLE_HEAD} kernels, ms | host, ms | extra MB | target |", "|---" * 8 + "|"]
    for row in results["rows"]:
        if "ms" not in row:
            lines.append(f"| {row['case']} | {row['skipped']} |" + " |" * 6)
            continue
        met = {True: "met", False: "missed", None: ""}[row.get("passed")]
        names = ("ms", "over", "beyond_us", "kernels_ms", "host_ms", "extra_mb")
        cells = [f"{row[name]:g}" if name in row else "" for name in names]
        lines.append(f"| {row['case']} | {' | '.join(cells)} | {met} |")
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """Plot the time of every case over its own floor."""
    rows = [row for row in results["rows"] if "ms" in row]
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(rows)), layout="constrained")
    panel = figure.subplots()
    bars = panel.barh([row["case"] for row in rows], [row["over"] for row in rows])
    panel.bar_label(bars, fmt="{:g}", padding=3)
    panel.margins(x=0.12)
    panel.invert_yaxis()
    panel.set_title("Loss and gradient: time over three trips of the logits", fontsize=10)
    figure.suptitle(caption(results), fontsize=9)
    save_figure(figure, path)
