"""Draw the figures of the documentation from benchmarks/results: `python benchmarks/figures.py`.

Each figure is written twice, for light and for dark pages: docs/figures/<name>_light.svg and <name>_dark.svg. The
numbers are those that the commands in the data's last column print; nothing is run here.
"""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

HERE = Path(__file__).parent
FIGURES = HERE.parent / "docs" / "figures"
# Blue and orange of Okabe and Ito, which colour-blind readers tell apart; text and lines of a page.
STYLES = {
    "light": {"text": "#1f2328", "grid": "#d1d9e0", "before": "#8c959f", "after": "#0072b2"},
    "dark": {"text": "#e6edf3", "grid": "#3d444d", "before": "#8b949e", "after": "#56b4e9"},
}


def tiny_world(results: pd.DataFrame, style: dict[str, str]) -> Figure:
    """Held-out accuracy before and after training, with standard errors; one pair of bars for each run.

    Args:
        results: columns method, seed, before, before_se, after, after_se, in percent.
        style: colours.
    """
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(results))
    for shift, key in ((-0.2, "before"), (0.2, "after")):
        bars = axes.bar(
            [place + shift for place in places],
            results[key],
            width=0.38,
            yerr=results[f"{key}_se"],
            label=f"{key} training",
            color=style[key],
            ecolor=style["text"],
            capsize=3,
        )
        axes.bar_label(bars, fmt="%.1f", label_type="center", color="white", fontsize=8)
    axes.set_xticks(places, [f"{row.method}\nseed {row.seed}" for row in results.itertuples()])
    axes.set_ylabel("held-out accuracy, %")
    axes.set_ylim(0, 100)
    axes.grid(axis="y", color=style["grid"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="upper right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def write(folder: Path = FIGURES) -> list[Path]:
    """Write all figures, and return their paths."""
    results = pd.read_csv(HERE / "results" / "tiny_world.csv")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, style in STYLES.items():
        colours = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), style["text"])
        # Without a date and with fixed ids, the same data give the same file.
        settings = {**colours, "axes.edgecolor": style["grid"], "svg.fonttype": "path", "svg.hashsalt": "verl-trd"}
        with mpl.rc_context(settings):
            figure = tiny_world(results, style)
            path = folder / f"tiny_world_{name}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None})
        written.append(path)
    return written


if __name__ == "__main__":
    print(*write(), sep="\n")
