"""Does a rewrite speak of an attempt, of an earlier solution or of a reference, none of which its reader knows?

The student is trained on y_r as if it had written it from the problem alone. A sentence about "your attempt" or "the
reference solution" would teach it to invent one.
"""

import re

_WORK = r"(?:attempt|solution|answer|approach|work|reasoning|response|version|draft|derivation|code|program)s?"
_EARLIER = r"(?:your|previous|earlier|prior|original|initial|student(?:'s|\u2019s)?|existing|flawed|incorrect|wrong)"
_PATTERNS = (
    rf"\b(?:your|student(?:'s|\u2019s))\s+{_WORK}\b",
    rf"\b(?:the|my|this|that|an?)\s+(?:\w+\s+)?{_EARLIER}\s+{_WORK}\b",
    rf"\b(?:reference|gold|model|ground[- ]truth|provided|official)\s+{_WORK}\b",
    r"\b(?:according to|as in|from|matches|following|with) the reference\b",
    r"\b(?:the|this|my|your|first|previous|earlier) attempt\b",
    rf"\b(?:corrected|rewritten|revised|refined|fixed|improved)\s+{_WORK}\b",
    r"\b(?:mistake|error)s? in (?:the|your|my) (?:\w+\s+)?" + _WORK + r"\b",
    r"\b(?:here is|here's|below is) (?:the|a|my) (?:corrected|rewrit\w+|revised|refined|fixed|improved)\b",
)
_META = re.compile("|".join(_PATTERNS), re.IGNORECASE)


def phrases(y_r: str, *, problem: str) -> list[str]:
    """What a rewrite says about an attempt or a reference, in the order of the text, lower case.

    English only. Words that the problem itself uses are left out: "is the student's answer right?" may be the question.

    Args:
        y_r: the rewrite as text.
        problem: the student's last user message.
    """
    asked = _plain(problem)
    found = (_plain(match.group()) for match in _META.finditer(y_r))
    return [phrase for phrase in found if phrase not in asked]


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("\u2019", "'").split())
