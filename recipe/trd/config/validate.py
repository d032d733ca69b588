"""Rules that values of the configuration keep; a message names the key, its value and what is allowed."""


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError for a word that is not among those that are allowed."""
    if value not in allowed:
        raise ValueError(f"{key}={value!r} is not one of {', '.join(allowed)}")


def require(holds: bool, key: str, value: object, rule: str) -> None:
    """ValueError unless the rule holds."""
    if not holds:
        raise ValueError(f"{key}={value} must be {rule}")


def at_least(key: str, value: float, least: float) -> None:
    """ValueError for a number below the least."""
    require(value >= least, key, value, f"at least {least}")
