"""Which part of a response is the code: the last fenced block of Python, or the response itself."""

import re
import textwrap
from dataclasses import dataclass, field

_FENCE = re.compile(r"[ \t]*(```+|~~~+)[ \t]*([^\s`]*)[^`]*")
_PYTHON = {"python", "python3", "py", "py3"}
_CODE_LINE = re.compile(r"^(import |from \w+(\.\w+)* import |def \w+\(|class \w+|print\(|\w+ *= *\S)", re.MULTILINE)


def last_code(response: str, *, closed_only: bool = False) -> str:
    """The code of a response; empty if there is none.

    It is the last fenced block that is marked as Python, else the last that is not marked, without the indentation that
    the block as a whole has. A block whose fence does not close ends with the response: whether it was cut off shows
    when it runs. A response without any fence is code as a whole if one of its lines, after a closed `</think>`, looks
    like code.

    Args:
        response: the decoded response.
        closed_only: take only blocks whose fence closes, for graders that would run the rest of the response as well.
    """
    blocks = [block for block in _blocks(response) if block.is_closed or not closed_only]
    for languages in (_PYTHON, {""}):
        found = [block.code for block in blocks if block.language in languages]
        if found:
            return textwrap.dedent(found[-1]).strip("\n")
    answer = response.rpartition("</think>")[2]
    return answer.strip() if not blocks and not closed_only and _CODE_LINE.search(answer) else ""


@dataclass
class _Block:
    """A fenced block; its language is in lower case."""

    language: str
    lines: list[str] = field(default_factory=list)
    is_closed: bool = False

    @property
    def code(self) -> str:
        return "\n".join(self.lines)


def _blocks(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    fence = ""
    for line in text.replace("\r\n", "\n").split("\n"):
        mark = _FENCE.fullmatch(line)
        if fence and mark and mark[1].startswith(fence) and not mark[2]:
            fence = ""
            blocks[-1].is_closed = True
        elif mark and (not fence or (mark[1] == fence and mark[2].lower() in _PYTHON)):
            # Inside an open block, this is the next one: the end of the first was forgotten.
            fence = mark[1]
            blocks.append(_Block(mark[2].lower()))
        elif fence:
            blocks[-1].lines.append(line)
    return blocks
