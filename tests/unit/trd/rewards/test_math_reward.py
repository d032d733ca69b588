from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from recipe.trd.rewards.math_reward import compute_score, last_boxed, truth_text


def score(solution: str, ground_truth: str) -> float:
    return compute_score("tiny_world", solution, ground_truth)["score"]


def test_right_answer_gives_all_three_fields():
    assert compute_score("tiny_world", "29-6=23\n\\boxed{23}", "23", extra_info={"index": 0}, split="train") == {
        "score": 1.0,
        "acc": 1.0,
        "pred": "23",
    }


def test_wrong_answer_keeps_the_prediction():
    assert compute_score("tiny_world", "\\boxed{24}", "23") == {"score": 0.0, "acc": 0.0, "pred": "24"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{ 7 }", "7"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed{}", ""),
        ("the answer is 7", ""),
        ("", ""),
        ("\\boxed{25", ""),
        ("\\boxed{25} or \\boxed{2", ""),
        ("\\boxed{{25}", ""),
        ("\\boxed{25}}}", "25"),
        ("\\boxed", ""),
    ],
)
def test_last_box_is_read_with_balanced_braces(text: str, expected: str):
    assert last_boxed(text) == expected


@pytest.mark.parametrize("solution", ["", "25", "\\boxed{25", "\\boxed{}"])
def test_no_answer_scores_zero(solution: str):
    assert compute_score("tiny_world", solution, "25") == {"score": 0.0, "acc": 0.0, "pred": ""}


@pytest.mark.parametrize(
    ("pred", "ground_truth"),
    [("25.0", "25"), ("\\frac{1}{2}", "0.5"), ("\\dfrac{2}{4}", "\\frac{1}{2}"), ("x+1", "1+x"), ("1,000", "1000")],
)
def test_equal_mathematics_scores_one(pred: str, ground_truth: str):
    assert score(f"\\boxed{{{pred}}}", ground_truth) == 1.0


@pytest.mark.parametrize("pred", ["26", "-25", "2 5", "x", "}{", "\\frac{1", "\\text{no}"])
def test_other_answers_score_zero(pred: str):
    assert score(f"\\boxed{{{pred}}}", "25") == 0.0


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "pred",
    [
        *("9^{9^{9^9}}", "2^{100000000}", "1000000000!", "9**9**9", "9!!", "1+" * 200 + "1"),
        *("(9^{99})!", "(x+y+z+1)^{900}", "\\left(9^{99}\\right)!"),
    ],
)
def test_answer_that_would_not_finish_is_compared_as_text(pred: str):
    assert score(f"\\boxed{{{pred}}}", "25") == 0.0
    assert score(f"\\boxed{{{pred}}}", pred) == 1.0


@pytest.mark.parametrize(("pred", "ground_truth"), [("2^{10}", "1024"), ("x^2+y^2", "y^2+x^2"), ("5!", "120")])
def test_ordinary_powers_and_factorials_are_still_compared(pred: str, ground_truth: str):
    assert score(f"\\boxed{{{pred}}}", ground_truth) == 1.0


def test_works_outside_the_main_thread():
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda pred: score(f"\\boxed{{{pred}}}", "25"), ["25.0", "26.0", "\\frac{50}{2}", "24"]))
    assert scores == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "truth", [34, 34.0, "34", " 34 ", ["34"], (34,), np.int64(34), np.float32(34), np.array(["34"]), np.array(34)]
)
def test_a_ground_truth_in_any_form_is_its_text(truth):
    assert compute_score("math", "\\boxed{34}", truth)["score"] == 1.0
    assert compute_score("math", "\\boxed{35}", truth)["score"] == 0.0


@pytest.mark.parametrize("truth", [None, True, "", [], ["1", "2"], {"a": 1}, float("nan"), float("inf"), b"34"])
def test_a_ground_truth_that_is_none_is_graded_zero_and_said(truth, caplog):
    assert compute_score("math", "\\boxed{34}", truth) == {"score": 0.0, "acc": 0.0, "pred": "34"}
    assert "is no answer" in caplog.text


@pytest.mark.parametrize(
    ("number", "text"),
    [(1.5e-5, "0.000015"), (1e-7, "0.0000001"), (1e22, "1" + 22 * "0"), (-0.0, "0"), (2.50, "2.5"), (0.1, "0.1")],
)
def test_a_number_is_a_plain_decimal(number, text):
    assert truth_text(number) == text
