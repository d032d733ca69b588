"""The tables of an evaluation and the warnings above them, for the terminal and for files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recipe.trd.evaluate import tables
from verl_ext.runtime.files import write_text

CAPTION = (
    "In percent, with 95 % bootstrap intervals over the problems: how far the figures would move with other problems "
    "of this kind. trunc: responses that were cut at the limit; tokens: mean length of a response."
)

_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens")


def write(result: Mapping[str, Any], out: Path) -> None:
    """Write `table.md`, `table.csv` and `table.tex`."""
    rows, warned = table(result), warnings(result)
    parts = [f"# {result['model']}\n", *(f"**{warning}**\n" for warning in warned), tables.markdown(rows)]
    if "baseline" in result:
        parts += [f"Against {result['baseline']['name']}, problem by problem:\n", tables.markdown(differences(result))]
    write_text(out / "table.md", "\n".join([*parts, CAPTION + "\n"]))
    write_text(out / "table.csv", tables.csv(numbers(result)))
    comments = "".join(f"% {warning}\n" for warning in warned)
    write_text(out / "table.tex", comments + tables.latex(rows) + (tables.latex(differences(result))))


def show(result: Mapping[str, Any], out: Path) -> None:
    """Print the tables."""
    console = Console(highlight=False)
    # Tables in a file or a pipe must not be folded.
    if not console.is_terminal:
        console.width = 200
    for warning in warnings(result):
        console.print(warning, style="bold red", markup=False, soft_wrap=True)
    for rows in (table(result), differences(result)):
        if rows:
            console.print(page(rows))
    console.print(CAPTION, style="dim", markup=False, soft_wrap=True)
    console.print(f"written to {out}", markup=False, soft_wrap=True)


def page(rows: Sequence[Mapping[str, str]]) -> Table:
    """A table of texts for the terminal; the columns are those of the first row."""
    shown = Table(*rows[0], box=None, padding=(0, 2), pad_edge=False)
    for row in rows:
        shown.add_row(*(escape(row.get(name, "")) for name in rows[0]))
    return shown


def table(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row for each set, and their mean where there are several; texts."""
    rows = []
    for part in result["sets"]:
        last = max(result["ks"])
        row = {"set": part["name"], "problems": str(part["num_problems"])}
        row |= _metric_cells(part, part["num_samples"], last)
        row |= {
            "trunc": f"{100 * part['truncated_frac']:.1f}",
            "tokens": f"{part['response_tokens']['mean']:,.0f}",
            "weights": weights_name(result),
        }
        rows.append(row)
    if result["mean"]:
        cells = _metric_cells(result["mean"], result["sets"][0]["num_samples"], max(result["ks"]))
        blank = {"trunc": "", "tokens": "", "weights": weights_name(result)}
        rows.append({"set": "mean of sets", "problems": "", **cells, **blank})
    return rows


def _metric_cells(part: Mapping[str, Any], num_samples: int, last_k: int) -> dict[str, str]:
    """avg, every pass@k, and maj@k for the largest k; the other maj@k are in the CSV."""
    cells = {}
    for name, estimate in part["metrics"].items():
        if name == "avg":
            cells[f"avg@{num_samples}"] = tables.percent(estimate)
        elif name.startswith("pass@") or name == f"maj@{last_k}":
            cells[name] = tables.percent(estimate)
    return cells


def weights_name(result: Mapping[str, Any]) -> str:
    """The first digits of the fingerprint, and a warning where the weights are those of the base."""
    weights = result["weights"]
    name = weights["model"][:8] + (f"+{weights['adapter'][:8]}" if weights["adapter"] else "")
    return f"{tables.EQUAL_TO_BASE} {name}" if weights["base"] and weights["base"]["equal"] else name


def warnings(result: Mapping[str, Any]) -> list[str]:
    """Warnings about what was evaluated and how it was graded."""
    found = []
    base = result["weights"]["base"]
    if base and base["equal"]:
        found.append(
            f"WARNING: the weights of {result['model']} are {tables.EQUAL_TO_BASE} {base['model']} "
            f"({base['num_tensors']} tensors compared): no training is evaluated here"
        )
    for part in result["sets"]:
        failed = {name: count for name, count in part["failed_grades"].items() if count}
        if failed:
            listed = ", ".join(f"{count} {name}" for name, count in failed.items())
            found.append(f"WARNING: {part['name']}: grades that failed count as wrong: {listed}")
        if part["truncated_frac"] >= 0.1:
            share = f"{part['truncated_frac']:.0%} of the responses were cut at the limit"
            found.append(
                f"WARNING: {part['name']}: {share}; raise --max-tokens before reading anything into the figures"
            )
    return found + (result["baseline"]["warnings"] if "baseline" in result else [])


def pair_warnings(result: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """Warnings where a difference between two results is not one between two models."""
    found = []
    sampling, baseline_sampling = result["settings"]["sampling"], baseline["settings"]["sampling"]
    different = [
        f"{name} {baseline_sampling[name]} -> {sampling[name]}"
        for name in _SAMPLING
        if sampling[name] != baseline_sampling[name]
    ]
    if result["settings"]["chat"] != baseline["settings"]["chat"]:
        different.append("the chat template or its arguments")
    if different:
        found.append(f"WARNING: sampled differently than the baseline: {', '.join(different)}")
    if all(result["weights"][name] == baseline["weights"][name] for name in ("model", "adapter")):
        found.append(f"WARNING: {result['model']} and the baseline {baseline['model']} have the SAME WEIGHTS")
    return found


def differences(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row for each set that the baseline has too; texts."""
    if "baseline" not in result:
        return []
    rows = []
    for name, metrics in result["baseline"]["differences"].items():
        row = {"set": name}
        row |= {f"change of {metric}": tables.percent(value, signed=True) for metric, value in metrics.items()}
        average = metrics["avg"]
        row |= {"better/worse": f"{average['num_better']}/{average['num_worse']}", "p": f"{average['p_value']:.3g}"}
        rows.append(row)
    return rows


def numbers(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each set and metric, in full precision, fractions in [0, 1]."""
    rows = []
    differences = result.get("baseline", {}).get("differences", {})
    for part in [*result["sets"], *([result["mean"]] if result["mean"] else [])]:
        for metric, estimate in part["metrics"].items():
            row = {"model": result["model"], "set": part["name"], "metric": metric, **estimate}
            change = differences.get(part["name"], {}).get(metric, {})
            row |= {f"change_{key}": change.get(key, math.nan) for key in ("value", "low", "high", "p_value")}
            row |= {key: part.get(key) for key in ("num_problems", "num_samples", "truncated_frac")}
            row |= {"response_tokens_mean": part.get("response_tokens", {}).get("mean")}
            rows.append({**row, "fingerprint": result["weights"]["model"], "equal_to_base": _equal(result)})
    return rows


def _equal(result: Mapping[str, Any]) -> bool | None:
    base = result["weights"]["base"]
    return None if base is None else bool(base["equal"])
