"""Tests of code, as TACO, APPS and LiveCodeBench have them: what to run, on which input, and what is right.

The shapes are those that `recipe.trd.data` writes and verl's graders read, and those of the sets' own rows:

    {"inputs": [...], "outputs": [...]}                    standard input to standard output; text, or a list of lines
    {"inputs": [...], "outputs": [...], "fn_name": "f"}    calls; an input is a list of arguments, or one as JSON a line
    {"assert_case": [...]}                                 statements that raise where the code is wrong, run after it

Nothing here runs code; see `sandbox.py`. Of several right answers, the one that the set has is right.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_INTEGER = re.compile(r"[+-]?\d+")

# Names that solutions of sites with calls take for granted; what is built in stays so.
_PRELUDE = """\
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string, sys
from bisect import *
from collections import *
from copy import *
from functools import *
from heapq import *
from itertools import *
from math import *
from re import *
from string import *
from typing import *
from builtins import *
"""

_LOAD = """\
import sys, types
def load(source):
    module = types.ModuleType("program")
    sys.modules["program"] = module
    exec({prelude!r}, module.__dict__)
    exec(compile(source, "program.py", "exec"), module.__dict__)
    return module.__dict__
"""

# The code's own output is kept apart from the result.
_CALL = """
import io, json
def plain(value):
    return value.tolist() if hasattr(value, "tolist") else list(value)
answer, sys.stdout = sys.stdout, io.StringIO()
arguments = [json.loads(line) for line in sys.stdin.read().split("\\n") if line.strip()]
names = load({program!r})
function = names.get({fn_name!r}) or getattr(names.get("Solution", object)(), {fn_name!r})
result = json.dumps(function(*arguments), default=plain)
answer.write("\\n" + result + "\\n")
answer.flush()
"""

# The first line is printed again at the end: code that exits before the asserts has not passed them.
_ASSERT = """
word = sys.stdin.readline()
names = load({program!r})
exec(compile(sys.stdin.read(), "test.py", "exec"), names)
print("\\n" + word)
"""


@dataclass(frozen=True)
class Case:
    """One test: what the code gets, and what it has to print or return."""

    stdin: str
    expected: Any


@dataclass(frozen=True)
class CodeTests:
    """The tests of one problem, all of one kind."""

    kind: Literal["stdin", "call", "assert"]
    cases: tuple[Case, ...]
    fn_name: str = ""

    def limited(self, max_tests: int | None) -> "CodeTests":
        """At most so many of them, spread evenly from the first to the last: large inputs often come late."""
        total = len(self.cases)
        if max_tests is None or total <= max_tests:
            return self
        chosen = [number * (total - 1) // max(1, max_tests - 1) for number in range(max_tests)]
        return CodeTests(self.kind, tuple(self.cases[number] for number in chosen), self.fn_name)

    def source(self, code: str) -> str:
        """What is run for the code of a response, on the standard input of each case."""
        if self.kind == "stdin":
            return code
        load = _LOAD.format(prelude=_PRELUDE)
        return load + (_CALL if self.kind == "call" else _ASSERT).format(program=code, fn_name=self.fn_name)

    def is_right(self, case: Case, stdout: str, tolerance: float) -> bool:
        """Whether this output of `source` passes the test; `tolerance` is `same_text`'s."""
        if self.kind == "stdin":
            return same_text(stdout, case.expected, tolerance)
        last_line = stdout.rstrip().rpartition("\n")[2]
        if self.kind == "assert":
            return last_line == case.expected
        result = _value(last_line)
        try:
            # APPS wraps the results of some of its functions in a list.
            wrapped = isinstance(case.expected, list) and len(case.expected) == 1
            return same_value(result, case.expected, tolerance) or (
                wrapped and same_value(result, case.expected[0], tolerance)
            )
        except RecursionError:
            return False


def read(ground_truth: str | Mapping[str, Any]) -> CodeTests:
    """The tests of a problem.

    Raises:
        ValueError: they have none of the shapes above, or there are none.
    """
    tests = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
    if not isinstance(tests, Mapping):
        raise ValueError(f"the tests of a program must be a mapping, not {type(tests).__name__}")
    if asserts := tests.get("assert_case"):
        words = [secrets.token_hex(8) for _ in asserts]
        pairs = zip(words, asserts, strict=True)
        return CodeTests("assert", tuple(Case(f"{word}\n{code}", word) for word, code in pairs))
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    if not isinstance(inputs, Sequence) or not isinstance(outputs, Sequence) or isinstance(inputs, str):
        raise ValueError(f"tests of a program need inputs and outputs, or assert_case; these have {sorted(tests)}")
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(f"tests of a program have {len(inputs)} inputs and {len(outputs)} outputs")
    pairs_of_any = zip(inputs, outputs, strict=True)
    if fn_name := tests.get("fn_name"):
        return CodeTests("call", tuple(_call(given, expected) for given, expected in pairs_of_any), fn_name)
    return CodeTests("stdin", tuple(Case(_lines(given), _lines(expected)) for given, expected in pairs_of_any))


def _call(given: Any, expected: Any) -> Case:
    if isinstance(given, str):
        return Case(given, _value(expected) if isinstance(expected, str) else expected)
    return Case("\n".join(map(json.dumps, given)), expected)


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _value(text: str) -> Any:
    """The value of a JSON text; the text itself where it is no JSON, e.g. an integer of thousands of digits."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def same_text(got: str, expected: str, tolerance: float) -> bool:
    """Whether two outputs have the same words on the same lines; spaces around words and empty lines do not count.

    Decimal numbers may differ by `tolerance`, absolutely or relative to the expected one. Integers may not: where one
    is expected, "3.0" is the same as "3", and "1000000008" is not the same as "1000000007".
    """
    if got == expected:
        return True
    got_lines, expected_lines = (
        [line.split() for line in text.split("\n") if line.strip()] for text in (got, expected)
    )
    return len(got_lines) == len(expected_lines) and all(
        len(got_words) == len(expected_words)
        and all(_same_word(*pair, tolerance) for pair in zip(got_words, expected_words, strict=True))
        for got_words, expected_words in zip(got_lines, expected_lines, strict=True)
    )


def _same_word(got: str, expected: str, tolerance: float) -> bool:
    if got == expected:
        return True
    if not _NUMBER.fullmatch(got) or not _NUMBER.fullmatch(expected):
        return False
    if _INTEGER.fullmatch(expected):
        # As texts, integers were compared already: in an answer of binary digits "010" is not "10".
        return not _INTEGER.fullmatch(got) and Decimal(got) == Decimal(expected)
    return _close(float(got), float(expected), tolerance)


def _close(got: float, expected: float, tolerance: float) -> bool:
    return abs(got - expected) <= tolerance * max(1.0, abs(expected))


def same_value(got: Any, expected: Any, tolerance: float) -> bool:
    """Whether two values of JSON are the same; numbers are compared as by `same_text`.

    Raises:
        RecursionError: they are nested too deep.
    """
    if isinstance(got, list) and isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(
            same_value(*pair, tolerance) for pair in zip(got, expected, strict=True)
        )
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(same_value(got[key], expected[key], tolerance) for key in got)
    if isinstance(expected, float) and isinstance(got, int | float):
        return _close(float(got), expected, tolerance) if abs(got) < 1e308 else got == expected
    return bool(got == expected)
