"""What counts as talk of an attempt or a reference, and what is mathematics."""

import pytest

from recipe.trd.rewrite.meta_talk import phrases


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Your solution is right up to here.", "your solution"),
        ("In your attempt the sign was lost.", "your attempt"),
        ("The student\u2019s answer is 46.", "student's answer"),
        ("The previous attempt forgot the factor 2.", "the previous attempt"),
        ("My original approach was correct, so I keep it.", "my original approach"),
        ("This matches the reference solution.", "matches the reference"),
        ("According to the reference, x = 3.", "according to the reference"),
        ("Here is the corrected solution:", "here is the corrected"),
        ("Here's my rewritten version.", "here's my rewritten"),
        ("There is an error in your derivation.", "your derivation"),
        ("The provided solution uses induction.", "provided solution"),
        ("the attempt above divides by zero", "the attempt"),
    ],
)
def test_talk(text, phrase):
    assert phrase in " | ".join(phrases(text, problem="12+34=?"))


@pytest.mark.parametrize(
    "text",
    [
        "The first solution of the equation is x = 2, the second x = 3.",
        "The solution set is empty. The answer is \\boxed{46}.",
        "We refer to the original equation and improve the bound.",
        "The initial value is 3, the previous term 5, and the given points are collinear.",
        "Let the frame of reference be fixed. The work done is 5 J.",
        "By the previous step, n is even. A wrong sign would give a contradiction.",
        "",
    ],
)
def test_mathematics(text):
    assert phrases(text, problem="12+34=?") == []


def test_words_of_the_problem_are_no_talk():
    problem = "Anna solved it in two ways. Is the student's answer right?"
    assert phrases("The student's answer is right.", problem=problem) == []
    assert phrases("The student's solution is right.", problem=problem) == ["the student's solution"]
