"""Table and plot of recorded training steps."""

from pathlib import Path
from textwrap import fill

from matplotlib.figure import Figure

from benchmarks import kernel_names
from benchmarks.recording import caption, save_figure

TABLE_HEAD = "| config, images | method | images/s | times the first | ms a step |"
PARTS = ("data", "backbone", "fpn", "head", "loss", "backward", "optimiser")


SHARES = {"mfu": 0, "roofline": 0, "loss_share": 1}  # with the digits of the percentage


def markdown_table(results: dict) -> str:
    """Return tables of rates, memory and parts of steps and of their kernels, with lines on failures below them."""
    lines = [
        f"{TABLE_HEAD} peak GB | warm-up s | model FLOPs of the peak | roofline of the step | loss, share of a step | "
        + " | ".join(f"{part} ms" for part in PARTS)
        + " |",
        "|---" * (10 + len(PARTS)) + "|",
    ]
    rows = [row for row in results["rows"] if row["method"] != "varied"]
    first: dict[tuple, float] = {}  # rate of the first method of a config and size of batch
    for row in rows:
        case = _case(row)
        if "images_s" not in row:
            lines.append(f"| {case} | {row['method']} | {row['skipped']} |" + " |" * (7 + len(PARTS)))
            continue
        shares = [f"{row[name]:.{digits}%}" if name in row else "" for name, digits in SHARES.items()]
        parts = [f"{row['parts_ms'][part]:g}" if "parts_ms" in row else "" for part in PARTS]
        ratio = f"{row['images_s'] / first.setdefault(case, row['images_s']):.2f}"
        figures = [f"{row['images_s']:g}", ratio, f"{row['ms']:g}", f"{row['peak_gb']:g}"]
        figures += [f"{row['warm_up_s']:g}" if "warm_up_s" in row else "", *shares, *parts]
        lines.append(f"| {case} | {row['method']} | {' | '.join(figures)} |")
    return "\n".join([*lines, "", *kernel_lines(rows), *failure_lines(results), *varied_lines(results)])


def kernel_lines(rows: list[dict]) -> list[str]:
    """Return a table of the device's time by what kernels are for, if it was measured."""
    rows = [row for row in rows if "kernels_ms" in row]
    if not rows:
        return []
    parts = kernel_names.PARTS
    head = f"| config, images | method | kernels ms | {' | '.join(f'{part} ms' for part in parts)} | direct copies |"
    lines = [head, "|---" * (4 + len(parts)) + "|"]
    for row in rows:
        times = [row["kernels_ms"][part] for part in parts]
        figures = [f"{sum(times):.3g}", *(f"{time:g}" for time in times), f"{row['direct_copies']:g}"]
        lines.append(f"| {_case(row)} | {row['method']} | {' | '.join(figures)} |")
    return [*lines, ""]


def _case(row: dict) -> str:
    return f"{row['config']}, {row['images']} of {row['size']}"


def failure_lines(results: dict) -> list[str]:
    """Return the errors of methods whose steps were measured before they failed, and of the varied batches."""
    late = [row for row in results["rows"] if "skipped" in row and ("images_s" in row or row["method"] == "varied")]
    return [f"Failed, {row['method'].replace('varied', 'varied batches')}: {row['skipped']}." for row in late]


def varied_lines(results: dict) -> list[str]:
    rows = [row for row in results["rows"] if row["method"] == "varied" and "skipped" not in row]
    return [
        f"{_case(row)}: {row['steps']} compiled steps with varied batches: {row['graphs']} graphs where "
        f"{row['graphs_expected']} are expected, {row['graph_breaks']} graph breaks"
        + ("." if row["host_syncs"] is None else f", {row['host_syncs']} waits of the host.")
        for row in rows
    ]


def draw(results: dict, path: Path) -> None:
    """Plot images a second of every method, and the parts of a step of ours."""
    rows = [row for row in results["rows"] if "images_s" in row]
    figure = Figure(figsize=(12, 1.3 + 0.5 * len(rows)), layout="constrained")
    rates, parts = figure.subplots(1, 2)
    several = len({_case(row) for row in rows}) > 1
    names = {id(row): f"{_case(row)}, {row['method']}" if several else row["method"] for row in rows}
    bars = rates.barh(list(names.values()), [row["images_s"] for row in rows], color="tab:blue")
    rates.bar_label(bars, fmt="{:g}", padding=3)
    rates.set_title("images/s", fontsize=10)
    rates.margins(x=0.12)
    ours = [row for row in rows if "parts_ms" in row]
    left = [0.0] * len(ours)
    for part in PARTS:
        widths = [max(0.0, row["parts_ms"][part]) for row in ours]
        parts.barh([names[id(row)] for row in ours], widths, left=left, label=part)
        left = [begin + width for begin, width in zip(left, widths)]
    parts.set_title("ms of each part of a step", fontsize=10)
    parts.set_visible(bool(ours))
    if ours:
        figure.legend(loc="outside lower right", fontsize=8, ncols=len(PARTS), frameon=False)
    for panel in (rates, parts):
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    case = results["case"]
    what = "; ".join([*dict.fromkeys(map(_case, rows)), case["precision"]])
    figure.suptitle(f"{what}\n{fill(caption(results), 170)}", fontsize=9)
    save_figure(figure, path)
