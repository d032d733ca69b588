"""Fit the maps of OPRD-Bridge: `python -m recipe.trd.fit_bridge student=... teacher=... train_files=... out=...`.

Keys: `configs/fit_bridge.yaml`. What happens is in `recipe/trd/oprd/fitting.py`.
"""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from recipe.trd.config.paths import CONFIG_DIR
from recipe.trd.oprd.fit_config import FitConfig

REFUSED = 2
"""Exit code: the settings cannot work, or the maps do not fit."""


@hydra.main(config_path=str(CONFIG_DIR), config_name="fit_bridge", version_base=None)
def main(config: DictConfig) -> None:
    """Fit, print how well it fits, write."""
    try:
        typed = OmegaConf.structured(FitConfig)
        OmegaConf.set_readonly(typed, False)
        fit_config = OmegaConf.to_object(OmegaConf.merge(typed, config))
        assert isinstance(fit_config, FitConfig)
        # Imported here, so that --help and wrong keys are answered at once.
        from recipe.trd.oprd.fitting import run

        run(fit_config, Console())
    except (ValueError, OSError, OmegaConfBaseException) as error:
        print(f"no bridge: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(REFUSED) from error


if __name__ == "__main__":
    main()
