"""The summary of a run as a page for the terminal. Takes numbers, reads no file of the run."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recipe.trd.reports.progress import format_seconds
from recipe.trd.reports.step_seconds import OVERLAPPING

_WIDTH = 96
# Longest text of an example; its middle is left out, because the answer is at the end.
_MAX_LINES = 8
_MAX_CHARS = 420

_FILES = {
    "log.txt": "everything that was printed",
    "metrics.jsonl": "all metrics of every step",
    "rollouts": "every training sample",
    "validation": "every validation sample",
    "config.yaml": "the whole configuration",
    "summary.json": "this page as numbers",
}


def print_summary(summary: dict[str, Any], *, run_dir: Path) -> None:
    """Print the page, at most 96 columns wide.

    Args:
        summary: as returned by `run_summary.summarise`.
        run_dir: where its files lie.
    """
    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH)
    steps = "no step finished"
    if summary["last_step"] is not None:
        steps = f"steps {summary['first_step']} to {summary['last_step']}"
    console.print()
    console.rule(f"[bold]{escape(str(summary['method'] or 'run'))}[/bold], {steps}")
    _print_held_out(console, summary)
    if summary["rewriting"]:
        _print_rewriting(console, summary["rewriting"])
    for number, example in enumerate(summary["examples"], start=1):
        _print_example(console, example, number=number)
    _print_seconds(console, summary)
    _print_outputs(console, summary, run_dir=run_dir)


def _print_held_out(console: Console, summary: dict[str, Any]) -> None:
    held_out = summary["held_out"]
    if held_out is None:
        console.print("\nNo validation was recorded.")
        return
    is_accuracy = held_out["is_accuracy"]
    scale, unit = (100, " %") if is_accuracy else (1, "")
    table = Table(box=None, show_header=False, padding=(0, 2), pad_edge=False)
    for key in ("first", "last"):
        if estimate := held_out[key]:
            step = estimate["step"]
            when = "before training" if step == 0 else f"after step {step}"
            table.add_row(when, _plus_minus(estimate, scale) + unit, f"{estimate['num_problems']:,} problems")
    if (difference := held_out["difference"]) and difference["num_problems"]:
        text = f"paired on the same {difference['num_problems']:,} problems"
        change = _plus_minus(difference, scale, sign="+")
        table.add_row("[bold]difference[/bold]", f"[bold]{change}{' points' if is_accuracy else ''}[/bold]", text)
    console.print(f"\n[bold]Held-out {'accuracy' if is_accuracy else 'score'}[/bold] +/- standard error")
    console.print(table)
    for source, (first, last) in summary["held_out_by_source"].items():
        console.print(f"  {source}: {100 * first:.1f} -> {100 * last:.1f} %", markup=False)


def _plus_minus(estimate: dict[str, Any], scale: float, *, sign: str = "") -> str:
    error = estimate["standard_error"]
    return f"{scale * estimate['mean']:{sign}.1f}" + (f" +/- {scale * error:.1f}" if error is not None else "")


def _print_rewriting(console: Console, rewriting: dict[str, Any]) -> None:
    console.print("\n[bold]Rewriting[/bold] of the student's y_o to the teacher's y_r")
    console.print(f"{rewriting['accept_rate']:.1%} of {rewriting['num_samples']:,} samples accepted")
    rejected = [f"{name} {count:,}" for name, count in rewriting["verdicts"].items() if name != "accepted"]
    if rejected:
        console.print(f"rejected as: {', '.join(rejected)}", markup=False)
    if rewriting["num_graded"]:
        console.print(
            f"{rewriting['num_graded']:,} pairs were graded: y_o {rewriting['y_o_acc']:.1%} correct, "
            f"y_r {rewriting['y_r_acc']:.1%} (wrong made right {rewriting['wrong_to_right']:,}, "
            f"right made wrong {rewriting['right_to_wrong']:,})"
        )


def _print_example(console: Console, example: dict[str, Any], *, number: int) -> None:
    is_repair = None not in (example["y_o_acc"], example["y_r_acc"]) and example["y_o_acc"] < 1 <= example["y_r_acc"]
    kind = "wrong made right" if is_repair else f"verdict {example['verdict']}"
    title = f"Example {number}: step {example['step']}, {kind}"
    if example["ground_truth"] is not None:
        title += f", right answer {_shorten(str(example['ground_truth']))}"
    console.print()
    console.print(title, style="bold", markup=False)
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name in ("x", "y_o", "y_r"):
        table.add_row(name, escape(_shorten(str(example[name]))))
    console.print(table)


def _shorten(text: str) -> str:
    """The text without empty lines, its middle left out where it is long."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > _MAX_LINES:
        half = _MAX_LINES // 2
        lines = [*lines[:half], f"[... {len(lines) - 2 * half:,} lines ...]", *lines[-half:]]
    text = "\n".join(lines)
    if len(text) > _MAX_CHARS:
        half = _MAX_CHARS // 2
        text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
    return text


def _print_seconds(console: Console, summary: dict[str, Any]) -> None:
    seconds, throughput = summary["seconds"], summary["throughput"]
    if not seconds["total"]:
        return
    startup = f", after {format_seconds(seconds['startup'])} of start-up" if seconds["startup"] else ""
    console.print(f"\n[bold]Time[/bold] {format_seconds(seconds['total'])} of training and validation{startup}")
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for stage, value in seconds["stages"].items():
        name = f"{stage} *" if stage in OVERLAPPING else stage
        table.add_row(escape(name), f"{value:,.1f}", f"{value / seconds['total']:.1%}")
    console.print(table)
    if any(stage in seconds["stages"] for stage in OVERLAPPING):
        console.print("* at the same time as other stages, mostly gen; not part of the sum")
    rates = [
        f"{throughput[name]:,.1f} {unit}"
        for name, unit in (
            ("seconds_per_step", "s a step"),
            ("tokens_per_second", "tokens/s"),
            ("samples_per_second", "samples/s"),
        )
        if throughput[name] is not None
    ]
    console.print(", ".join(rates))


def _print_outputs(console: Console, summary: dict[str, Any], *, run_dir: Path) -> None:
    console.print(f"\n[bold]Files[/bold] in {escape(str(run_dir))}", soft_wrap=True)
    table = Table(box=None, show_header=False, padding=(0, 2), pad_edge=False)
    if checkpoints := summary["checkpoints"]:
        rest = f" and {len(checkpoints) - 1} earlier" if len(checkpoints) > 1 else ""
        table.add_row(checkpoints[-1], f"last checkpoint{rest}")
    for name, meaning in _FILES.items():
        if (run_dir / name).exists():
            table.add_row(name, meaning)
    console.print(table)
    packages = [f"{name} {version}" for name, version in summary["packages"].items() if version]
    state = {None: "", False: "", True: " with uncommitted changes"}[summary["dirty"]]
    console.print(f"\n[bold]Made with[/bold] commit {str(summary['commit'] or 'unknown')[:12]}{state}")
    if packages:
        console.print(", ".join(packages), style="dim")
    if summary["missing_files"]:
        console.print(f"Not there: {', '.join(summary['missing_files'])}", style="yellow", markup=False)
    for name, count in summary["damaged_lines"].items():
        text = f"{name}: {count} unreadable {'line' if count == 1 else 'lines'} left out (cut off by a crash?)"
        console.print(text, style="yellow", markup=False)
