"""Generated code against the tests of its problem; a service stands in for verl's Sandbox Fusion."""

import json
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.trd.config.paths import CONFIG_DIR
from recipe.trd.data import programs
from recipe.trd.rewards import code_grading, code_reward, code_tests, sandbox
from recipe.trd.rewards.code_grading import CodeRewardOptions, CodeVerdict
from recipe.trd.rewards.code_reward import compute_score
from recipe.trd.rewards.code_tests import same_text

SUMS = {"inputs": ["1 2\n", "3 4\n", "10 -10\n"], "outputs": ["3\n", "7\n", "0\n"]}
SUM = "print(sum(map(int, input().split())))"
CALLS = {"inputs": ["[1, 2]\n3", "[]\n0"], "outputs": ["[1, 2, 3]", "[0]"], "fn_name": "add"}
ASSERTS = {"assert_case": ["assert add(1, 2) == 3", "check = add\nassert check(0, 0) == 0"]}


def score(program, tests, **options):
    return compute_score("taco", f"So:\n```python\n{program}\n```\nDone.", json.dumps(tests), **options)


def test_right_program():
    result = score(SUM, SUMS)
    assert result == {
        "score": 1.0,
        "acc": 1.0,
        "pred": SUM,
        "fraction": 1.0,
        "num_tests": 3.0,
        "verdict": "passed",
        "wrong": 0.0,
        "timeout": 0.0,
        "crash": 0.0,
        "no_program": 0.0,
    }


@pytest.mark.parametrize(
    ("program", "verdict", "fraction"),
    [
        ("print(3)", "wrong", 1 / 3),
        ("print(3) if input() == '1 2' else 1 / 0", "crash", 1 / 3),
        # The test behind the one that hangs passes, and is not run.
        ("a = input()\nwhile a == '3 4': pass\nprint(3 if a == '1 2' else 0)", "timeout", 1 / 3),
        ("", "no_program", 0.0),
    ],
)
def test_failures_are_named_by_the_first(program, verdict, fraction):
    result = score(program, SUMS, timeout_s=1)
    assert (result["verdict"], result["fraction"], result["score"], result["acc"]) == (verdict, fraction, 0.0, 0.0)
    assert {kind: result[kind] for kind in ("wrong", "timeout", "crash", "no_program")} == {
        kind: float(kind == verdict) for kind in ("wrong", "timeout", "crash", "no_program")
    }
    assert list(result) == list(score(SUM, {"inputs": [""], "outputs": [""]}))


def test_score_may_be_the_fraction():
    result = score("print(3)", SUMS, score="fraction")
    assert (result["score"], result["acc"]) == (pytest.approx(1 / 3), 0.0)


@pytest.mark.parametrize(
    "program",
    [
        "def add(xs, x):\n    print('noise')\n    return xs + [x]",
        "class Solution:\n    def add(self, xs: List[int], x: int) -> List[int]:\n        return [*xs, x]",
        "def add(xs, x):\n    return (*xs, x)",
        "def add(xs, x):\n    yield from [*xs, x]",
        "import numpy as np\ndef add(xs, x):\n    return np.array([*xs, x])",
        "def add(xs, x):\n    return [*xs, x]\nif __name__ == '__main__':\n    print(add([int(input())], 1))",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
        "def add(xs, x):\n    return [P(y).x for y in [*xs, x]]",
    ],
    ids=["function", "method", "tuple", "generator", "array", "with a main part", "dataclass"],
)
def test_functions_are_called(program):
    assert score(program, CALLS)["verdict"] == "passed"


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("def add(xs, x):\n    return xs", "wrong"),
        ("def plus(xs, x):\n    return xs + [x]", "crash"),
        ("def add(xs):\n    return xs", "crash"),
        ("def add(xs, x):\n    return object()", "crash"),
        ("def add(xs, x):\n    raise SystemExit", "wrong"),
        ("print([1, 2, 3])\ndef add(xs, x):\n    return None", "wrong"),
    ],
)
def test_functions_that_fail(program, verdict):
    assert score(program, CALLS)["verdict"] == verdict


def test_asserts_run_in_the_program():
    assert score("def add(a, b):\n    return a + b", ASSERTS)["verdict"] == "passed"
    assert score("def add(a, b):\n    return 3", ASSERTS)["fraction"] == 0.5
    # Success before the asserts is none.
    for leaving in ("import os\nos._exit(0)", "exit()"):
        assert score(leaving, ASSERTS)["verdict"] == "wrong"


def test_prepared_rows_are_graded():
    rows = [
        ({"inputs": ["1\n2\n"], "outputs": [["3", ""]]}, "print(int(input()) + int(input()))"),
        ({"inputs": [["1", "2"]], "outputs": ["3\n"]}, "print(int(input()) + int(input()))"),
        ({"inputs": [[[1, 2], "a"]], "outputs": [["12a"]], "fn_name": "f"}, "def f(x, y): return f'{x[0]}{x[1]}{y}'"),
        ({"inputs": [["1"]], "outputs": ["1"], "fn_name": "f"}, "def f(x): return x"),
    ]
    for tests, program in rows:
        prepared = programs.custom_tests(json.dumps(tests))
        assert compute_score("taco", f"```\n{program}\n```", prepared)["verdict"] == "passed"
        assert score(program, tests)["verdict"] == "passed"


def test_tests_are_spread_over_all_of_them():
    tests = code_tests.read({"inputs": [str(n) for n in range(100)], "outputs": [""] * 100})
    assert [case.stdin for case in tests.limited(4).cases] == ["0", "33", "66", "99"]
    assert [case.stdin for case in tests.limited(1).cases] == ["0"]
    assert tests.limited(None) == tests.limited(100) == tests
    assert score(SUM, SUMS, max_tests=2)["num_tests"] == 2.0


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ("1 2 \n\n3\n", "1  2\n3", True),
        ("1\n2", "1 2", False),
        ("1 2 3", "1 2", False),
        ("Yes", "YES", False),
        ("0.3333333333", "0.33333333", True),
        ("0.3334", "0.33333333", False),
        ("1e-7", "0.0", True),
        ("3", "3.000", True),
        ("3.0", "3", True),
        ("3.0000001", "3", False),
        ("1000000008", "1000000007", False),
        ("1000000008.0", "1000000007", False),
        ("010", "10", False),
        ("nan", "nan", True),
        ("nan", "1.0", False),
        ("1_0.0", "10.0", False),
        ("9" * 10_000, "9" * 9_999 + "8", False),
        ("9" * 10_000 + ".0", "9" * 10_000, True),
        ("x 1.0000000001", "x 1.0", True),
    ],
)
def test_outputs_are_compared_word_by_word(got, expected, same):
    assert same_text(got, expected, 1e-6) is same


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ("[1, 2]", "[1, 2]", True),
        ("[1, 2]", "[2, 1]", False),
        ("5", "[5]", True),
        ("[5]", "5", False),
        ("0.30000000000000004", "0.3", True),
        ("2", "2.0", True),
        ("2.5", "2", False),
        ("1000000008", "1000000007", False),
        ('{"1": [1.0]}', '{"1": [1.0000000001]}', True),
        ('{"1": 1}', '{"2": 1}', False),
        ("null", "[]", False),
        ('"1"', "1", False),
        ("1" + "0" * 5000, "1" + "0" * 5000, True),
        ("1" + "0" * 400, "1.5", False),
        ("[" * 100_000, "[1]", False),
    ],
)
def test_results_are_compared_as_values(got, expected, same):
    tests = code_tests.read({"inputs": ["1"], "outputs": [expected], "fn_name": "f"})
    assert tests.is_right(tests.cases[0], f"noise\n{got}\n", 1e-6) is same


@pytest.mark.parametrize(
    ("ground_truth", "message"),
    [
        ("no json", "Expecting value"),
        ("[1]", "must be a mapping"),
        ('{"inputs": ["1"]}', "need inputs and outputs"),
        ('{"inputs": [], "outputs": []}', "0 inputs and 0 outputs"),
        ('{"inputs": ["1", "2"], "outputs": ["1"]}', "2 inputs and 1 outputs"),
    ],
)
def test_tests_that_cannot_be_read_are_an_error_that_names_the_row(ground_truth, message):
    with pytest.raises(ValueError, match=f"taco 17: .*{message}"):
        compute_score("taco", "", ground_truth, {"index": 17})


@pytest.mark.parametrize(
    "options", [{"max_test": 3}, {"timeout_s": 0}, {"timeout_s": 0.5}, {"score": "some"}, {"tolerance": "1e-6"}]
)
def test_options_that_are_unknown_or_impossible_are_errors(options):
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        score(SUM, SUMS, **options)


def test_what_verl_passes_beside_the_options_is_no_error():
    assert score(SUM, SUMS, reward_router_address="host:1", reward_model_tokenizer=None, max_tests=None)["acc"] == 1.0


def test_missing_layers_are_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(sandbox, "LAYERS", ("namespaces", "landlock", "moat"))
    code_grading._warn_of_missing_layers.cache_clear()
    score(SUM, SUMS)
    score(SUM, SUMS)
    # Only this module's lines: other libraries' warnings reach caplog too where an earlier test made them log lines.
    lines = [record.getMessage() for record in caplog.records if record.name == code_grading.__name__]
    assert len(lines) == 1
    assert "without moat" in lines[0] or "and moat" in lines[0]


class Fusion(BaseHTTPRequestHandler):
    """Sandbox Fusion's `/run_code`: runs what it gets, in the form in which it answers; may be out of order."""

    refusals = 0

    def do_POST(self):
        task = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Fusion.refusals > 0:
            Fusion.refusals -= 1
            self.send_error(500)
            return
        limits = sandbox.SandboxLimits(cpu_s=task["run_timeout"], memory_mb=task["memory_limit_MB"])
        result = sandbox.run(task["code"], task["stdin"], limits)
        done, late = result.outcome is sandbox.SandboxOutcome.DONE, result.outcome is sandbox.SandboxOutcome.TIMEOUT
        run = {"status": "TimeLimitExceeded" if late else "Finished", "stdout": result.stdout}
        run |= {"return_code": 0 if done else 1, "stderr": result.reason, "execution_time": result.cpu_s}
        answer = json.dumps({"status": "Success" if done else "Failed", "compile_result": None, "run_result": run})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def fusion(monkeypatch):
    monkeypatch.setattr(code_grading, "_PAUSE_S", 0.0)
    monkeypatch.setattr(Fusion, "refusals", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Fusion) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/run_code"
        server.shutdown()
        thread.join()


def test_verls_sandbox_service_gives_the_same_verdicts(fusion):
    floats = {"inputs": ["2"], "outputs": ["0.333333"]}
    cases = [
        (SUM, SUMS),
        ("print(3)", SUMS),
        ("print(3) if input() == '1 2' else 1 / 0", SUMS),
        ("a = input()\nwhile a == '3 4': pass\nprint(3 if a == '1 2' else 0)", SUMS),
        # verl's own comparison, which is exact, would call this wrong.
        ("print(1 / 3)", floats),
        ("def add(xs, x):\n    return [*xs, x]", CALLS),
        ("def add(a, b):\n    return 3", ASSERTS),
    ]
    for program, tests in cases:
        here = score(program, tests, timeout_s=1)
        assert score(program, tests, timeout_s=1, sandbox_fusion_url=fusion) == here


def test_runs_that_the_service_lost_are_repeated(fusion):
    Fusion.refusals = 2
    assert score(SUM, SUMS, sandbox_fusion_url=fusion)["verdict"] == "passed"
    assert Fusion.refusals == 0


def test_a_service_that_does_not_answer_is_no_verdict(fusion):
    Fusion.refusals = 1000
    with pytest.raises(sandbox.SandboxError, match=r"no result for 3 of 3 runs .* in 3 attempts: .*500"):
        score(SUM, SUMS, sandbox_fusion_url=fusion)


def test_a_trivial_program_is_run_before_anything_depends_on_it(fusion, monkeypatch):
    code_reward.check(max_tests=5)
    code_reward.check(sandbox_fusion_url=fusion)
    Fusion.refusals = 1000
    with pytest.raises(sandbox.SandboxError, match=r"no result for 1 of 1 runs"):
        code_reward.check(sandbox_fusion_url=fusion)
    with pytest.raises(ValueError, match=r"reward_kwargs\.max_tests=0 must be a whole number"):
        code_reward.check(max_tests=0)
    monkeypatch.setattr(code_reward, "grade", lambda *_: [CodeVerdict.CRASH])
    with pytest.raises(sandbox.SandboxError, match=r"one line got the verdict crash with timeout_s=10 and memory_mb=2"):
        code_reward.check(memory_mb=2)


def test_defaults_are_those_of_the_configuration():
    verls = OmegaConf.load(Path(find_spec("verl").submodule_search_locations[0]) / "trainer/config/reward/reward.yaml")
    taco = OmegaConf.load(CONFIG_DIR / "data" / "taco.yaml")
    config = OmegaConf.create({"reward": {"sandbox_fusion": verls.sandbox_fusion}, "kwargs": taco.reward_kwargs})
    assert OmegaConf.to_container(config, resolve=True)["kwargs"] == asdict(CodeRewardOptions())


def test_verl_loads_the_reward_with_its_options():
    from verl.trainer.ppo.reward import get_custom_reward_fn

    function = {
        "path": "pkg://recipe.trd.rewards.code_reward",
        "name": "compute_score",
        "reward_kwargs": {"max_tests": 1},
    }
    loaded = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))
    result = loaded(data_source="taco", solution_str=f"```python\n{SUM}\n```", ground_truth=json.dumps(SUMS))
    assert (result["acc"], result["num_tests"]) == (1.0, 1.0)
