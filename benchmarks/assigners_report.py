"""Tables and plot of the comparison of assigners."""

from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure

from benchmarks.assigner_runs import BASELINE, TABLES, best_rate
from benchmarks.recording import caption, save_figure

TABLE_HEAD = "Budget of every run:"
SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")
NOTHING = -1  # COCOeval's value where there is nothing to measure


def markdown_table(results: dict) -> str:
    """Return the budget, every table of the comparison, run or not run, and the cost of each loss."""
    parts = [budget(results["case"])]
    begun = {row["table"] for row in results["rows"]}
    for table, (title, *_) in TABLES.items():
        parts += [f"**{title}**", accuracy_table(results, table)] if table in begun else [f"**{title}**: not run"]
    if "costs" in results:
        parts.append("**Cost of the losses** with their gradients: ms, and in brackets MB beyond inputs and gradients")
        parts.append(cost_table(results))
    return "\n\n".join(parts)


def budget(case: dict) -> str:
    """Return in a sentence how all runs were trained."""
    rates = ", ".join(f"{rate:g}" for rate in case["rates"])
    settings = ", ".join(f"`{setting}`" for setting in case["budget"])
    seeds = len(case["seeds"])
    return (
        f"{TABLE_HEAD} the config `shapes` with {settings}. Learning rate, for 16 images: the best "
        f"of {rates} on seed {case['trial_seed']}, which is not reported. Figures in percent: mean ± standard "
        f"deviation over {seeds} seeds; in brackets the same of the differences from `{BASELINE}` on the same seed."
    )


def accuracy_table(results: dict, table: str) -> str:
    """Return the rows of a table, as far as they have been run."""
    lines = [f"| {TABLES[table].rows_are} | rate | {' | '.join(SHOWN)} |", "|---" * (2 + len(SHOWN)) + "|"]
    baseline = finished(results, TABLES[table].baseline or table, BASELINE)
    for name in TABLES[table].rows:
        own, planned = finished(results, table, name), len(results["case"]["seeds"])
        label = name if len(own) in (0, planned) else f"{name}, {len(own)} of {planned} seeds"
        rate = best_rate(results["rows"], table, name)
        others = {} if own == baseline else baseline
        cells = [cell(metric, own, others) for metric in SHOWN] if own else [state(results, table, name)]
        cells += [""] * (len(SHOWN) - len(cells))
        lines.append(f"| {label} | {'' if rate is None else f'{rate:g}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def finished(results: dict, table: str, name: str) -> dict[int, dict]:
    """Return the reported runs of a row that came to their end, by seed."""
    rows = [row for row in results["rows"] if (row["table"], row["row"]) == (table, name) and "AP" in row]
    return {row["seed"]: row for row in rows if row["seed"] in results["case"]["seeds"]}


def state(results: dict, table: str, name: str) -> str:
    """Say how far a row is that has no reported run."""
    rows = [row for row in results["rows"] if (row["table"], row["row"]) == (table, name)]
    failed = [row for row in rows if "failed" in row]
    if failed and len(failed) == len(rows):
        return f"failed in {len(failed)} of {len(rows)} runs"
    return f"{len(rows)} trial runs" if rows else "not run"


def cell(metric: str, own: dict[int, dict], baseline: dict[int, dict]) -> str:
    """Return mean and deviation of a metric in percent, and of its differences from the baseline on the same seeds."""
    values = [row[metric] for row in own.values()]
    if NOTHING in values:
        return "-"
    differences = [row[metric] - baseline[seed][metric] for seed, row in own.items() if seed in baseline]
    return spread(values) + (f" ({spread(differences, sign='+')})" if differences else "")


def spread(values: list[float], sign: str = "") -> str:
    """Return "mean ± standard deviation" in percent, of one value the value alone."""
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):{sign}.1f}{deviation}"


def cost_table(results: dict) -> str:
    """Return a table of time and memory of each loss."""
    measured = {(cost["row"], cost["case"]): cost for cost in results["costs"]}
    cases, names = (list(dict.fromkeys(key[part] for key in measured)) for part in (1, 0))
    lines = [f"| loss | {' | '.join(cases)} |", "|---" * (1 + len(cases)) + "|"]
    for name in names:
        cells = ["{ms:g} ({extra_mb:g})".format(**measured[name, case]) for case in cases]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict, path: Path) -> None:
    """Plot the AP of every reported run, and the mean of each row, a panel for each table."""
    shown = [table for table in TABLES if any(finished(results, table, name) for name in TABLES[table].rows)]
    if not shown:
        return
    figure = Figure(figsize=(9, 1 + 1.9 * len(shown)), layout="constrained")
    for axes, table in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown):
        names = [name for name in TABLES[table].rows if finished(results, table, name)]
        for height, name in enumerate(names):
            values = [100 * row["AP"] for row in finished(results, table, name).values()]
            axes.plot(values, [height] * len(values), "o", color="tab:blue", markersize=5, alpha=0.6)
            axes.plot(mean(values), height, "|", color="black", markersize=16, markeredgewidth=2)
        axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        axes.set_title(TABLES[table].title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("AP in percent: a dot for each seed, a line for their mean")
    figure.suptitle(caption(results), fontsize=8)
    save_figure(figure, path)
