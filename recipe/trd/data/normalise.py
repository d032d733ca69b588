"""Normalises texts of problems for comparison: whitespace, case and the layout of formulas do not count."""

import re
import unicodedata

_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|qquad|quad|mathrm|text)(?![a-zA-Z])|\\[,;:! ]|\\[()\[\]]|[$~]"
)
_FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")
_BRACED_CHARACTER = re.compile(r"\{(\w)\}")
_SPACE_AT_SIGNS = re.compile(r"\s*([^\w\s])\s*")
_WORD = re.compile(r"[^\W_]+")


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    return _LAYOUT.sub(" ", _FRACTION.sub(r"\\frac", text))


def key(text: str) -> str:
    """Text that is equal for copies of a problem. Signs stay: x+1 and x-1 are different problems."""
    text = _SPACE_AT_SIGNS.sub(r"\1", _BRACED_CHARACTER.sub(r"\1", _plain(text)))
    return " ".join(text.split()).rstrip(".?!:;,")


def words(text: str) -> tuple[str, ...]:
    """Runs of letters and digits, in order; signs and layout are gone."""
    return tuple(_WORD.findall(_plain(text)))
