"""Table and plot of recorded inference."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.recording import caption, save_figure

TABLE_HEAD = "| method | images in a batch | images/s |"


def markdown_table(results: dict) -> str:
    """Return a table of rates, times and memory by method and size of batch."""
    lines = [
        f"{TABLE_HEAD} ms a batch | of it selection | peak GB | first call s |",
        "|---" * 7 + "|",
    ]
    for row in results["rows"]:
        if "images_s" not in row:
            lines.append(f"| {row['method']} | {row['batch']} | {row['skipped']} |" + " |" * 4)
            continue
        select = f"{row['select_ms']:g}" if "select_ms" in row else ""
        figures = [f"{row[name]:g}" for name in ("images_s", "ms")]
        figures += [select, f"{row['peak_gb']:g}", f"{row['first_s']:g}"]
        lines.append(f"| {row['method']} | {row['batch']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """Plot images a second of every method, one panel for each size of batch."""
    rows = [row for row in results["rows"] if "images_s" in row]
    batches = sorted({row["batch"] for row in rows})
    figure = Figure(figsize=(5.5 * len(batches), 3), layout="constrained")
    axes = figure.subplots(1, len(batches), squeeze=False)
    for panel, batch in zip(axes[0], batches):
        of_batch = [row for row in rows if row["batch"] == batch]
        bars = panel.barh([row["method"] for row in of_batch], [row["images_s"] for row in of_batch])
        panel.bar_label(bars, fmt="{:g}", padding=3)
        panel.margins(x=0.15)
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
        panel.set_title(f"images/s, {batch} in a batch", fontsize=10)
    case = results["case"]
    what = f"{case['config']}, images of {case['height']}x{case['width']}, {case['precision']}"
    figure.suptitle(f"{what}\n{caption(results)}", fontsize=9)
    save_figure(figure, path)
