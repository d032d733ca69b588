"""Rows of programming sets to items. The ground truth is JSON, in the two shapes that verl's code graders read.

    {"inputs": [...], "outputs": [...]}                     standard input to standard output
    {"inputs": [...], "outputs": [...], "fn_name": "f"}     calls: an input is a line of JSON for each argument
    {"assert_case": [...]}                                  statements that raise where the code is wrong

Source: verl 0.9.1 `utils/reward_score/prime_code` and `utils/reward_score/sandbox_fusion`.
"""

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Sequence
from typing import Any

from recipe.trd.data.items import Item, Row, UnusableRow, optional_text, text

STDIN_INSTRUCTION = (
    "Write a Python program that reads the input from standard input and prints the output to standard output. "
    "Think it through first, then give the whole program in one ```python block."
)
FUNCTION_INSTRUCTION = (
    "Write it in Python, under the name that is given. Think it through first, then give the whole code, with the "
    "imports that it needs, in one ```python block."
)


def instruction(ground_truth: str) -> str:
    """The instruction for a problem with these tests."""
    return STDIN_INSTRUCTION if json.loads(ground_truth).keys() == {"inputs", "outputs"} else FUNCTION_INSTRUCTION


def tests_json(inputs: Sequence[Any], outputs: Sequence[Any], fn_name: str | None) -> str:
    """Tests with inputs and outputs as JSON.

    Args:
        inputs: for each test a text or a list of lines; with a function, a list of arguments, or the text of them.
        outputs: for each test a text or a list of lines; with a function, a value, or its text where the input is text.
        fn_name: the function to call; None for standard input.

    Raises:
        UnusableRow: no tests, or not as many outputs as inputs.
    """
    if not inputs:
        raise UnusableRow("no tests")
    if len(inputs) != len(outputs):
        raise UnusableRow("not as many outputs as inputs in the tests")
    tests: dict[str, Any]
    if fn_name:
        tests = {
            "inputs": ["\n".join(map(json.dumps, case)) if isinstance(case, list) else case for case in inputs],
            "outputs": [
                json.dumps(value) if isinstance(case, list) else value
                for case, value in zip(inputs, outputs, strict=True)
            ],
            "fn_name": fn_name,
        }
    else:
        tests = {"inputs": [_lines(case) for case in inputs], "outputs": [_lines(case) for case in outputs]}
    if not all(isinstance(case, str) for case in [*tests["inputs"], *tests["outputs"]]):
        raise UnusableRow("tests are not text")
    return json.dumps(tests, ensure_ascii=False)


def _lines(case: Any) -> Any:
    return "\n".join(map(str, case)) if isinstance(case, list) else case


def limit_tests(ground_truth: str, max_tests: int) -> str:
    """The first `max_tests` of the tests with inputs and outputs; asserts are one piece and stay."""
    tests = json.loads(ground_truth)
    if "inputs" not in tests:
        return ground_truth
    return json.dumps(tests | {key: tests[key][:max_tests] for key in ("inputs", "outputs")}, ensure_ascii=False)


def parse(value: Any, what: str) -> Any:
    """JSON of a column.

    Raises:
        UnusableRow: it is none. Numbers with thousands of digits, which some tests have, count as unreadable too.
    """
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UnusableRow(f"{what} cannot be read as JSON") from error


def with_starter(problem: str, starter_code: str | None) -> str:
    """The problem, followed by its starter code where there is any."""
    return f"{problem}\n\nStart from this code:\n```python\n{starter_code}\n```" if starter_code else problem


def taco_row(row: Row) -> Item:
    """TACO, and APPS, whose columns are the same: tests and solutions are JSON in text; the first solution is kept.

    Raises:
        UnusableRow: no problem, or no tests that can be read.
    """
    problem = with_starter(text(row, "question", "problem"), optional_text(row, "starter_code"))
    tests = custom_tests(text(row, "input_output", "tests"))
    solutions = row.get("solutions")
    try:
        solutions = parse(solutions, "solutions") or []
    except UnusableRow:
        solutions = []
    first = next((code.strip() for code in solutions if isinstance(code, str) and code.strip()), None)
    return Item(problem, tests, first, instruction=instruction(tests))


def custom_tests(value: str) -> str:
    """Ground truth from tests as JSON text, in any of the shapes above.

    Raises:
        UnusableRow: they have no such shape.
    """
    tests = parse(value, "tests")
    if isinstance(tests, dict) and isinstance(tests.get("assert_case"), list) and tests["assert_case"]:
        return json.dumps({"assert_case": [str(case) for case in tests["assert_case"]]}, ensure_ascii=False)
    if not isinstance(tests, dict) or not all(isinstance(tests.get(key), list) for key in ("inputs", "outputs")):
        raise UnusableRow("tests have neither inputs and outputs nor assert_case")
    return tests_json(tests["inputs"], tests["outputs"], tests.get("fn_name") or None)


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of plain values: one that names a class could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse every class and function."""
        raise pickle.UnpicklingError(f"{module}.{name} in a pickle of tests")


def _private_tests(value: str) -> Any:
    """LiveCodeBench's hidden tests: JSON, in a pickle, compressed, in base64; plain JSON in some copies."""
    if value.lstrip().startswith("["):
        return parse(value, "tests")
    try:
        pickled = zlib.decompress(base64.b64decode(value, validate=True))
        return parse(_PlainUnpickler(io.BytesIO(pickled)).load(), "tests")
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise UnusableRow("hidden tests cannot be read") from error


def livecodebench_row(row: Row) -> Item:
    """LiveCodeBench: public and hidden tests, in this order; inputs and outputs are text in verl's form already.

    Raises:
        UnusableRow: no problem, or tests that cannot be read.
    """
    tests = [*parse(row.get("public_test_cases") or "[]", "tests")]
    tests += _private_tests(row.get("private_test_cases") or "[]")
    metadata = parse(row.get("metadata") or "{}", "metadata")
    fn_name = metadata.get("func_name") if any(test.get("testtype") == "functional" for test in tests) else None
    if not tests:
        raise UnusableRow("no tests")
    ground_truth: dict[str, Any] = {key: [test[f"{key[:-1]}"] for test in tests] for key in ("inputs", "outputs")}
    problem = with_starter(text(row, "question_content", "problem"), optional_text(row, "starter_code"))
    tests_text = json.dumps(ground_truth | ({"fn_name": fn_name} if fn_name else {}), ensure_ascii=False)
    return Item(problem, tests_text, id=str(row.get("question_id") or ""), instruction=instruction(tests_text))


def humaneval_row(row: Row) -> Item:
    """HumanEval+: a function to complete; the reference is signature and body together.

    Raises:
        UnusableRow: a column is missing or empty.
    """
    opening = text(row, "prompt", "problem")
    check = f"{text(row, 'test', 'tests')}\n\ncheck({text(row, 'entry_point', 'entry_point')})"
    body = row.get("canonical_solution")
    return Item(
        f"Complete this function:\n```python\n{opening}\n```",
        json.dumps({"assert_case": [check]}, ensure_ascii=False),
        f"{opening}\n{body}".rstrip() if isinstance(body, str) and body.strip() else None,
        str(row.get("task_id") or ""),
        FUNCTION_INSTRUCTION,
    )


def mbpp_row(row: Row) -> Item:
    """MBPP+: a sentence and, since it names no function, the first of the simple tests as an example.

    Raises:
        UnusableRow: a column is missing or empty.
    """
    examples = row.get("test_list")
    if not isinstance(examples, list) or not examples or not isinstance(examples[0], str):
        raise UnusableRow("no example in test_list")
    imports = row.get("test_imports")
    lines = [*(imports if isinstance(imports, list) else []), text(row, "test", "tests")]
    return Item(
        f"{text(row, 'prompt', 'problem')}\n\nFor example, this has to hold:\n```python\n{examples[0].strip()}\n```",
        json.dumps({"assert_case": ["\n".join(lines)]}, ensure_ascii=False),
        optional_text(row, "code"),
        str(row["task_id"]) if row.get("task_id") is not None else "",
        FUNCTION_INSTRUCTION,
    )
