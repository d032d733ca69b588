"""Which part of a response is the code: the last fenced block of Python, or the response itself."""

import re
import textwrap

_FENCE = re.compile(r"[ \t]*(```+|~~~+)[ \t]*([^\s`]*)[^`]*")
_PYTHON = {"python", "python3", "py", "py3"}
_CODE_LINE = re.compile(r"^(import |from \w+(\.\w+)* import |def \w+\(|class \w+|print\(|\w+ *= *\S)", re.MULTILINE)


def last_code(response: str) -> str:
    """The code of a response; empty if there is none.

    It is the last fenced block that is marked as Python, else the last that is not marked, without the indentation that
    the block as a whole has. A block whose fence does not close ends with the response: whether it was cut off shows
    when it runs. A response without any fence is code as a whole if one of its lines, after a closed `</think>`, looks
    like code.
    """
    blocks = _blocks(response)
    for languages in (_PYTHON, {""}):
        found = [code for language, code in blocks if language in languages]
        if found:
            return textwrap.dedent(found[-1]).strip("\n")
    answer = response.rpartition("</think>")[2]
    return answer.strip() if not blocks and _CODE_LINE.search(answer) else ""


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language, in lower case, and content of all fenced blocks."""
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in text.replace("\r\n", "\n").split("\n"):
        mark = _FENCE.fullmatch(line)
        if fence and mark and mark[1].startswith(fence) and not mark[2]:
            fence = ""
        elif mark and (not fence or (mark[1] == fence and mark[2].lower() in _PYTHON)):
            # Within an open block, this is the next one: the end of the other was forgotten.
            fence = mark[1]
            blocks.append((mark[2].lower(), []))
        elif fence:
            blocks[-1][1].append(line)
    return [(language, "\n".join(lines)) for language, lines in blocks]
