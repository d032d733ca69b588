"""The README's table, the data of its figure and the figure say the same."""

import importlib.util
import re
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
RESULTS = pd.read_csv(ROOT / "benchmarks" / "results" / "tiny_world.csv")


def test_the_table_has_the_numbers_of_the_data():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    row = r"\| `(\w+)` \| (\d) \| ([\d.]+) ± ([\d.]+) % \| ([\d.]+) ± ([\d.]+) % \| ([+-][\d.]+) ± [\d.]+ \|"
    printed = re.findall(row, text)
    columns = ["method", "seed", "before", "before_se", "after", "after_se"]
    assert [[name, *map(float, numbers[:-1])] for name, *numbers in printed] == RESULTS[columns].values.tolist()
    for (*_, gain), result in zip(printed, RESULTS.itertuples(), strict=True):
        # Gains are of counts, not of rounded percentages.
        assert abs(float(gain) - (result.after - result.before)) < 0.15


def test_commands_of_the_data_exist():
    for command in RESULTS["command"]:
        assert (ROOT / re.search(r"bash (\S+)", command)[1]).is_file()


def test_the_figure_is_drawn_from_the_data(tmp_path):
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    for path in figures.write(tmp_path):
        assert path.read_bytes() == (figures.FIGURES / path.name).read_bytes(), "run python benchmarks/figures.py"
