"""Versions of installed packages."""

from collections.abc import Iterable
from importlib import metadata


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Version of every package, by its name on the package index; None where it is not installed."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    # Looked up at every call: `verl_ext.cpu` replaces the function to answer for vLLM's CPU build.
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
