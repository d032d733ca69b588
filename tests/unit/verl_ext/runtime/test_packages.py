"""Versions of installed packages."""

from importlib import metadata

from verl_ext.runtime.packages import installed_versions


def test_version_of_what_is_installed_and_none_of_the_rest():
    assert installed_versions(["pytest", "no-such-package"]) == {
        "pytest": metadata.version("pytest"),
        "no-such-package": None,
    }
