"""Where the package keeps its files, in a checkout and in an installed wheel alike."""

from pathlib import Path

CONFIG_DIR = Path(__file__).with_name("yaml")
"""Hydra's files; in the checkout a link to `configs/`."""
