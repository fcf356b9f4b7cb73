"""Table and plot of recorded training steps."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.recording import caption, save_figure

TABLE_HEAD = "| method | images/s | times the first | ms a step |"
PARTS = ("data", "backbone", "fpn", "head", "loss", "backward", "optimiser")


def markdown_table(results: dict) -> str:
    """Return a table of rates, memory and parts of a step, with lines on failures and on varied batches below it."""
    first = next((row for row in results["rows"] if "images_s" in row), None)
    lines = [
        f"{TABLE_HEAD} peak GB | model FLOPs of the peak | loss, share of a step | "
        + " | ".join(f"{part} ms" for part in PARTS)
        + " |",
        "|---" * (7 + len(PARTS)) + "|",
    ]
    for row in results["rows"]:
        if "images_s" not in row:
            lines.append(f"| {row['method']} | {row['skipped']} |" + " |" * (5 + len(PARTS)))
            continue
        shares = [f"{row[name]:.{digits}%}" if name in row else "" for name, digits in (("mfu", 0), ("loss_share", 1))]
        parts = [f"{row['parts_ms'][part]:g}" if "parts_ms" in row else "" for part in PARTS]
        ratio = f"{row['images_s'] / first['images_s']:.2f}"
        figures = [f"{row['images_s']:g}", ratio, f"{row['ms']:g}", f"{row['peak_gb']:g}", *shares, *parts]
        lines.append(f"| {row['method']} | {' | '.join(figures)} |")
    return "\n".join([*lines, "", *failure_lines(results), *varied_lines(results)])


def failure_lines(results: dict) -> list[str]:
    """Return the errors of methods whose steps were measured before they failed, and of the varied batches."""
    late = {row["method"]: row for row in results["rows"] if "images_s" in row}
    parts = late | {"varied batches": results["varied"]}
    return [f"Failed, {name}: {part['skipped']}." for name, part in parts.items() if part and "skipped" in part]


def varied_lines(results: dict) -> list[str]:
    varied = results["varied"]
    if varied is None or "skipped" in varied:
        return []
    syncs = "" if varied["host_syncs"] is None else f", {varied['host_syncs']} waits of the host"
    return [
        f"{varied['steps']} compiled steps with varied batches: {varied['graphs']} graphs where "
        f"{varied['graphs_expected']} are expected, {varied['graph_breaks']} graph breaks{syncs}."
    ]


def draw(results: dict, path: Path) -> None:
    """Plot images a second of every method, and the parts of a step of ours."""
    rows = [row for row in results["rows"] if "images_s" in row]
    figure = Figure(figsize=(12, 1.3 + 0.5 * len(rows)), layout="constrained")
    rates, parts = figure.subplots(1, 2)
    names = [row["method"] for row in rows]
    bars = rates.barh(names, [row["images_s"] for row in rows], color="tab:blue")
    rates.bar_label(bars, fmt="{:g}", padding=3)
    rates.set_title("images/s", fontsize=10)
    rates.margins(x=0.12)
    ours = [row for row in rows if "parts_ms" in row]
    left = [0.0] * len(ours)
    for part in PARTS:
        widths = [max(0.0, row["parts_ms"][part]) for row in ours]
        parts.barh([row["method"] for row in ours], widths, left=left, label=part)
        left = [begin + width for begin, width in zip(left, widths)]
    parts.set_title("ms of each part of a step", fontsize=10)
    if ours:
        figure.legend(loc="outside lower right", fontsize=8, ncols=len(PARTS), frameon=False)
    for panel in (rates, parts):
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    case = results["case"]
    what = f"{case['config']}, {case['images']} images of {case['height']}x{case['width']}, {case['precision']}"
    figure.suptitle(f"{what}\n{caption(results)}", fontsize=9)
    save_figure(figure, path)
