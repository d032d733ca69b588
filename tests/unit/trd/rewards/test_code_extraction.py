"""Which part of a response is run as its code."""

import pytest

from recipe.trd.rewards.code_extraction import last_code


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("```python\na\n```\nBetter:\n```python\nb\n```\nOutput:\n```\n3\n```", "b"),
        ("```\na\n```", "a"),
        ("```Python3\r\na\r\nb\r\n```", "a\nb"),
        ("1. so\n   ```py\n   if a:\n       b\n   ```", "if a:\n    b"),
        ("```cpp\nint main() {}\n```", ""),
        ("```python\na\n```\n```python\nwhile b", "while b"),
        ("```python\na\nOr better:\n```python\nb\n```", "b"),
        ('````python\ns = """\n```\n"""\n````', 's = """\n```\n"""'),
        ("~~~python\na\n~~~", "a"),
        ("<think>\nx = 1\n</think>\nimport sys\nprint(1)", "import sys\nprint(1)"),
        ("<think>\nimport sys\n</think>\nI do not know.", ""),
        ("The answer is 5.", ""),
        ("", ""),
        ("```python\n```", ""),
    ],
)
def test_code_of_a_response(response, code):
    assert last_code(response) == code


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("```python\na\n```\nBetter:\n```python\nb\n```", "b"),
        ("```\na\n```", "a"),
        ("```python\na\n```\n```python\nwhile b", "a"),
        ("```python\na\nOr better:\n```python\nb\n```", "b"),
        ("```python\ncut off", ""),
        ("import sys\nprint(1)", ""),
    ],
)
def test_only_closed_blocks_count_where_that_is_asked(response, code):
    assert last_code(response, closed_only=True) == code
