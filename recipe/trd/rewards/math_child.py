"""The child process of math_grading.py: compares two answers for each line it reads, until its input ends.

A line is a JSON list of prediction and ground truth; the answer is `1` or `0`. Memory is limited; whoever started it
limits the time by killing it.
"""

import ctypes
import json
import logging
import resource
import signal
import sys

MEMORY_BYTES = 4 << 30
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer until the input ends."""
    # It dies with the process that started it, also in the middle of a comparison.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Python refuses to print numbers of more digits; such answers are compared as numbers all the same.
    sys.set_int_max_str_digits(0)
    logging.disable(logging.CRITICAL)
    from recipe.trd.rewards.math_equality import is_equal

    for line in sys.stdin:
        pred, truth = json.loads(line)
        try:
            equal = is_equal(pred, truth)
        except (Exception, MemoryError, RecursionError):
            equal = False
        print(int(equal), flush=True)


if __name__ == "__main__":
    main()
