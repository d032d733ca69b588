"""Everything that can be known about a run before it starts, as one table. No process is started.

    python -m recipe.trd.preflight method=trd_opd model=tiny data=tiny_world cluster=cpu [any.key=value ...]

Exit code 0 when the run could start, 2 when a check refuses it. Training does the same by itself; a check that should
not count is named in `trd.preflight.skip=[...]`.
"""

import contextlib
import io

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from recipe.trd.config.paths import CONFIG_DIR
from recipe.trd.preflight import checks

GREEN, AMBER, RED, GREY = "[green]ok[/]", "[yellow]warning[/]", "[red]refused[/]", "[dim]skipped[/]"


@hydra.main(config_path=str(CONFIG_DIR), config_name="trd_trainer", version_base=None)
def main(config: DictConfig) -> None:
    """Run every check and print what each found."""
    table = Table("check", "verdict", "what to change", title=f"preflight of method {config.trd.get('method')}")
    refused = False
    try:
        setup = checks.read(config)
    except checks.REFUSALS as error:
        table.add_row("configuration", RED, checks.refusal(error))
        Console(soft_wrap=True).print(table)
        raise SystemExit(2) from None
    for name, run in checks.CHECKS.items():
        if name in setup.trd.preflight.skip:
            table.add_row(name, GREY, "")
            continue
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                run(setup)
        except checks.REFUSALS as error:
            refused = True
            table.add_row(name, RED, checks.refusal(error))
            continue
        warnings = [line.split("WARNING ", 1)[1] for line in said.getvalue().splitlines() if "WARNING " in line]
        table.add_row(name, AMBER if warnings else GREEN, "\n".join(warnings))
    Console().print(table)
    raise SystemExit(2 if refused else 0)


if __name__ == "__main__":
    main()
