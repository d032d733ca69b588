"""Errors as one line for a person, and whether one is the death of a process."""

from collections.abc import Iterator


def first_line(error: BaseException) -> str:
    """First line with something in it of an exception's text; the name of its type where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException) -> str:
    """Type and first line of an exception; of one that Ray carried over, of its cause."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {first_line(cause)}"


def is_process_death(error: BaseException) -> bool:
    """Whether an exception says, or comes from another that says, that one of Ray's processes died."""
    # Ray takes a third of a second to import, and most commands do without it.
    from ray.exceptions import RayActorError, WorkerCrashedError

    return any(isinstance(cause, RayActorError | WorkerCrashedError) for cause in causes(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, what it was raised from, and what Ray carried over, each once."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        further = (getattr(current, "cause", None), current.__cause__, current.__context__)
        waiting += [cause for cause in further if isinstance(cause, BaseException)]
