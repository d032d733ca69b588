"""A single answer never holds a run: comparisons have a limit, and the process that makes them is replaced."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from recipe.trd.rewards import math_equality, math_grading
from recipe.trd.rewards.math_reward import compute_score, is_equal

PAIRS = [
    (r"\frac{1}{2}", "0.5", True),
    (r"3\times 10^{-7}", "0.0000003", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"(1, 2)", r"(1,2)", True),
    (r"\{1, 2\}", r"\{2, 1\}", True),
    (r"x^2-1", r"(x-1)(x+1)", True),
    (r"\binom{5}{2}", "10", True),
    (r"5!", "120", True),
    (r"\frac{\pi}{4}", r"\pi/4", True),
    ("25", "26", False),
    (r"\text{no}", "1", False),
    ("x", "y", False),
]


@pytest.mark.parametrize(("pred", "truth", "equal"), PAIRS)
def test_the_child_says_what_the_rule_says(pred, truth, equal):
    assert math_grading.is_equal(pred, truth) is math_equality.is_equal(pred, truth) is equal


@pytest.mark.parametrize(
    ("pred", "truth"),
    [
        (r"\binom{1000000000}{500000000}", "5"),
        (r"(a+b+c+d+e)^{99}", "5"),
        ("5", r"(a+b+c+d)^{99}"),
        ("5", r"9^{9^{9}}"),
        (r"\frac{x^{100}-1}{x-1}\cdot\frac{y^{100}-1}{y-1}", r"\frac{x^{100}-1}{x-1}"),
        (r"\sum_{k=1}^{100000} \frac{1}{k}", "12"),
        (r"\prod_{k=1}^{9999} k", "5"),
        (r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7})^{60}", "5"),
        (r"((((a+b)^{30}+c)^{30}+d)^{30})", "1"),
    ],
)
def test_answers_that_would_take_for_ever_are_different(pred, truth, monkeypatch):
    monkeypatch.setattr(math_grading.is_equal, "__kwdefaults__", {"limit_s": 1.0})
    began = time.monotonic()
    assert compute_score("math", rf"So \boxed{{{pred}}}", truth)["score"] == 0.0
    assert time.monotonic() - began < 15
    assert compute_score("math", r"\boxed{\frac{1}{2}}", "0.5")["score"] == 1.0  # the next one has a new process


@pytest.mark.parametrize(
    ("pred", "truth"), [("2**3", "8"), ("5", "5" + 300 * " "), ("9" * 300, "1"), (r"(a+b)^{100}", "1"), ("3", "3.0")]
)
def test_reward_and_evaluation_have_one_rule(pred, truth):
    assert is_equal(pred, truth) is math_equality.is_equal(pred, truth)


def test_threads_share_one_process():
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda number: math_grading.is_equal(f"{number}.0", str(number)), range(64)))
    assert all(verdicts)
    children = [child for child in psutil.Process().children() if "math_child" in " ".join(child.cmdline())]
    assert len(children) == 1


def test_a_process_that_died_is_replaced():
    assert math_grading.is_equal("1.0", "1")
    math_grading._child.kill()
    math_grading._child.wait()
    assert math_grading.is_equal("1.0", "1")


def test_it_dies_with_the_process_that_started_it():
    program = (
        "import os, signal\nfrom recipe.trd.rewards import math_grading as g\ng.is_equal('1.0', '1')\n"
        "print(g._child.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=False, timeout=120
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
