import pytest

from verl_ext.runtime import errors


class Carried(RuntimeError):
    """Like Ray's RayTaskError: the first cause is an attribute."""

    def __init__(self, cause):
        super().__init__("worker died\ntraceback")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one"), "one"),
        (ValueError("\n\n  second line \nthird"), "second line"),
        (ValueError(""), "ValueError"),
        (ValueError("  \n "), "ValueError"),
    ],
)
def test_first_line_is_the_first_with_something_in_it(error, line):
    assert errors.first_line(error) == line


def test_one_line_names_the_type_and_the_first_cause():
    assert errors.one_line(KeyError("key")) == "KeyError: 'key'"
    assert errors.one_line(Carried(OSError("disk full\nmore"))) == "OSError: disk full"
