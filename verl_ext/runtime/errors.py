"""Errors as one line for a person."""


def first_line(error: BaseException) -> str:
    """First line with something in it of an exception's text; the name of its type where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """Type and first line of an exception; of one that Ray carried over, of its cause."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {first_line(cause)}"
