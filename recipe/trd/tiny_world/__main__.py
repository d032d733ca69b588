"""Build the tiny world: `python -m recipe.trd.tiny_world [key=value ...]`; keys: `configs/tiny_world.yaml`."""

import json
import os

import hydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from recipe.trd.config.paths import CONFIG_DIR
from recipe.trd.tiny_world.build import CARD, SELF_CARD, build_world
from recipe.trd.tiny_world.world_config import TinyWorldConfig, from_mapping


def summary(card: dict[str, dict[str, float]]) -> Table:
    """The numbers of a card by which one sees whether a world is usable."""
    table = Table("measured", "value")
    for name, accuracy in card["accuracy"].items():
        table.add_row(f"accuracy {name}", f"{accuracy:.3f}")
    for name, tokens in card["tokens_max"].items():
        table.add_row(f"longest {name}", f"{tokens} tokens")
    for name, seconds in card["seconds"].items():
        table.add_row(f"build {name}", f"{seconds:.1f} s")
    return table


@hydra.main(config_path=str(CONFIG_DIR), config_name="tiny_world", version_base="1.3")
def main(config: DictConfig) -> None:
    """Build what is missing and print what the world is like."""
    # Read when torch is imported, which the build does later. On a machine shared with other work, threads that spin
    # while they wait make training several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console = Console()
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    out = build_world(from_mapping(TinyWorldConfig, {str(key): value for key, value in values.items()}), console)
    for name in (CARD, SELF_CARD) if config.with_self_student else (CARD,):
        console.print(summary(json.loads((out / name).read_text(encoding="utf-8"))))
    console.print(f"tiny world: {out}")


if __name__ == "__main__":
    main()
