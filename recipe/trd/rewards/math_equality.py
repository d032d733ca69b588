"""The rule by which two answers are equal, without any limit: for processes that may be killed.

`math_reward.is_equal` asks it through a child process (math_child.py); the evaluation's workers have limits themselves.
"""

from math_verify import LatexExtractionConfig, parse, verify


def is_equal(pred: str, ground_truth: str) -> bool:
    """Whether two answers are the same string, or the same mathematical object according to math-verify.

    math-verify limits its time by signals, which work only in the main thread; its limits are off here.
    """
    if pred == ground_truth.strip():
        return True
    gold, answer = (
        parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None) for text in (ground_truth, pred)
    )
    return bool(verify(gold, answer, timeout_seconds=None))
