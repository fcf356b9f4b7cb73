"""Table and plot of the losses compared on `shapes`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.recording import caption, save_figure

TABLE_HEAD = "| loss | learning rate |"
COLORS = {"torchvision": "tab:gray", "dual weighting": "tab:blue"}
STYLES = ("-", "--", ":", "-.")  # of learning rates


def markdown_table(results: dict) -> str:
    """Return a table of AP and milliseconds a step by loss and learning rate."""
    lines = [f"{TABLE_HEAD} AP | AP50 | AP75 | ms a step |", "|---" * 6 + "|"]
    for row in results["rows"]:
        if "skipped" in row:
            lines.append(f"| {row['loss']} | {row['lr']:g} | {row['skipped']} |" + " |" * 3)
            continue
        figures = [f"{row[name]:.3f}" for name in ("AP", "AP50", "AP75")]
        lines.append(f"| {row['loss']} | {row['lr']:g} | {' | '.join(figures)} | {row['ms']:g} |")
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """Plot loss and validation AP over the iterations: a colour for each loss, a line style for each learning rate."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    losses, precision = figure.subplots(1, 2)
    rows = [row for row in results["rows"] if "skipped" not in row]
    rates = list(dict.fromkeys(row["lr"] for row in rows))
    for row in rows:
        style = {"color": COLORS[row["loss"]], "linestyle": STYLES[rates.index(row["lr"]) % len(STYLES)]}
        label = f"{row['loss']}, learning rate {row['lr']:g}"
        window = max(1, len(row["losses"]) // 50)
        smooth = np.convolve(row["losses"], np.ones(window) / window, "valid")
        losses.plot(np.arange(len(smooth)) + window, smooth, label=label, **style)
        precision.plot(*zip(*row["curve"]), marker="o", markersize=4, **style)
    losses.set(title="training loss: each its own, not to be compared")
    precision.set(title="AP on the validation images", ylim=(0, None))
    for panel in (losses, precision):
        panel.set_xlabel("iteration")
        panel.title.set_fontsize(10)
        panel.grid(alpha=0.3)
    case = results["case"]
    what = f"torchvision's FCOS with R-18 on shapes, {case['iterations']} iterations of {case['batch_size']} images"
    figure.suptitle(f"{what}, {case['precision']}\n{caption(results)}", fontsize=9)
    figure.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    save_figure(figure, path)
