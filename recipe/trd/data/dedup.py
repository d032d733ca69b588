"""Removes later copies of a problem, and problems whose copies have different answers."""

from collections import Counter
from collections.abc import Iterable

from recipe.trd.data.items import Item
from recipe.trd.data.normalise import key
from recipe.trd.data.sources import MATH
from recipe.trd.rewards.math_reward import is_equal

COPY = "copy of an earlier row"
DISAGREEING = "copies of the problem have different answers"


def deduplicate(items: Iterable[Item], dropped: Counter[str], *, kind: str) -> list[Item]:
    """The first row of every problem, in order.

    Where two copies of a mathematics problem have answers that the grader calls different, one of them is wrong and
    nothing says which: none is kept. Tests of programs are not compared.

    Args:
        items: rows in the source's order; read once, so a set much larger than its problems needs little memory.
        dropped: reason to count; added to.
        kind: `math` or `code`.

    Returns:
        What is kept.
    """
    kept: dict[str, Item] = {}
    copies: Counter[str] = Counter()
    disagreeing: set[str] = set()
    for item in items:
        name = key(item.problem)
        first = kept.setdefault(name, item)
        if first is item:
            continue
        copies[name] += 1
        if kind == MATH and name not in disagreeing and not _agree(first.ground_truth, item.ground_truth):
            disagreeing.add(name)
    dropped[DISAGREEING] += sum(copies[name] + 1 for name in disagreeing)
    dropped[COPY] += sum(count for name, count in copies.items() if name not in disagreeing)
    return [item for name, item in kept.items() if name not in disagreeing]


def _agree(answer: str, other: str) -> bool:
    return answer == other or key(answer) == key(other) or is_equal(answer, other)
