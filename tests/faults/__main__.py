"""`python tests/faults`: inject every fault of docs/reliability.md, and print how many the run survived."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
UNIT = [
    "tests/unit/trd/rewards/test_sandbox.py",
    "tests/unit/trd/rewards/test_math_grading.py",
]
"""Faults of what runs in a process of its own anyway: code that forks or floods, answers that never end."""


class Count:
    """Counts what was injected and what was survived."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """pytest's hook."""
        if report.when == "call" or report.failed:
            self.outcomes[report.nodeid] = report.outcome


def main() -> int:
    """Exit code 0 when all were survived."""
    count = Count()
    code = pytest.main(["-p", "no:cacheprovider", "-q", "-x", str(HERE), *UNIT, *sys.argv[1:]], plugins=[count])
    survived = sum(outcome == "passed" for outcome in count.outcomes.values())
    for name, outcome in count.outcomes.items():
        if HERE.name in name:
            print(f"{outcome:8} {name.partition('::')[2]}")
    print(f"survived {survived} of {len(count.outcomes)} injected faults")
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
