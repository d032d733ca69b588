"""A reward function that raises, or never returns, when a file in FAULTS_DIR says so; once for each file."""

import os
import time
from pathlib import Path

from recipe.trd.rewards.math_reward import compute_score as grade


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    folder = Path(os.environ["FAULTS_DIR"])
    for fault in ("raise", "hang"):
        try:
            (folder / fault).unlink()
        except FileNotFoundError:
            continue
        if fault == "raise":
            raise ZeroDivisionError("the reward function is in a mood")
        time.sleep(10_000)
    return grade(data_source, solution_str, ground_truth, extra_info, **kwargs)
