"""The axis of contexts: what the teacher may be shown before a response.

A context is one entry of CONTEXTS. Its template, its length and its thinking switch are keys of the node that the entry
names, so a new one that is set by the same keys as another needs no further code (docs/extending.md).
"""

from dataclasses import dataclass
from enum import StrEnum


class Node(StrEnum):
    """The node of `trd` whose `template` and `max_prompt_length` a context is made with."""

    TEACHER = "teacher"
    REWRITE = "rewrite"


@dataclass(frozen=True)
class ContextKind:
    """What one context shows beside the problem x."""

    node: Node | None = None
    """None: the student's own conversation, without a template."""
    shows_y_o: bool = False
    """Whether it shows the student's rollout."""
    shows_reference: bool | None = False
    """Whether it shows the reference solution y*; None leaves it to `trd.rewrite.with_reference`."""


CONTEXTS: dict[str, ContextKind] = {
    "refine": ContextKind(Node.REWRITE, shows_y_o=True, shows_reference=None),
    "vanilla": ContextKind(),
    "privileged": ContextKind(Node.TEACHER, shows_reference=True),
}
"""Values of `trd.teacher.context`. y_r is always written under `refine`."""
