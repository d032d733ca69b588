"""One sample's requests to the teacher, against a client that answers as verl's does."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.replica import TokenOutput

from recipe.trd.rewrite.teacher import TeacherClient
from recipe.trd.rewrite.verdict import Verdict

CONFIGS = Path(__file__).parents[4] / "configs"
PROMPT = [{"role": "user", "content": "12+34=?"}]
MAX_RESPONSE_LENGTH = 8
TOP_K = 3


class Client:
    """Stands for verl's `LLMServerClient`: keeps what it was asked, gives what it was told to give."""

    def __init__(self, answer):
        self.answer = answer
        self.requests = []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs):
        self.requests.append({"id": request_id, "prompt_ids": prompt_ids, "sampling_params": sampling_params, **kwargs})
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture(scope="module")
def config():
    """The method trd_opd, small."""
    rewrite = {"max_prompt_length": 200, "max_response_length": 12, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
    changes = [f"trd.rewrite.{key}={value}" for key, value in rewrite.items()]
    with initialize_config_dir(str(CONFIGS), version_base=None):
        overrides = ["model=tiny", "data=tiny_world", "cluster=cpu", f"trd.objective.top_k={TOP_K}", *changes]
        return omega_conf_to_dataclass(compose("trd_trainer", overrides=overrides).trd)


@pytest.fixture
def make_teacher(config, tokenizer):
    def make(answer, *, student_eos=None, **changes):
        return TeacherClient(
            config=replace(config, **changes),
            client=Client(answer),
            tokenizer=tokenizer,
            eos_token_ids=[tokenizer.eos_token_id],
            student_eos_token_id=tokenizer.eos_token_id if student_eos is None else student_eos,
            max_response_length=MAX_RESPONSE_LENGTH,
            template_kwargs={},
        )

    return make


def output_of(token_ids, finish_reason="stop", num_rows=None):
    """What `TopKServer` sends: a row of top-k for every token."""
    rows = np.arange((len(token_ids) if num_rows is None else num_rows) * TOP_K, dtype=np.int32).reshape(-1, TOP_K)
    fields = {"finish_reason": finish_reason, "topk_ids": rows, "topk_log_probs": -rows.astype(np.float32)}
    return TokenOutput(token_ids=token_ids, stop_reason="completed", extra_fields=fields)


@pytest.fixture
def rewrite(tokenizer):
    def run(teacher, y_o="12+34=47"):
        return asyncio.run(teacher.rewrite(PROMPT, tokenizer.encode(y_o, add_special_tokens=False)))

    return run


def test_accepted_rewrite_comes_with_the_rows_of_the_server(make_teacher, rewrite, tokenizer):
    ids = [*tokenizer.encode("46", add_special_tokens=False), tokenizer.eos_token_id]
    answer = output_of(ids)
    got = rewrite(make_teacher(answer))
    assert (got.verdict, got.y_r_ids) == (Verdict.ACCEPTED, ids)
    assert got.topk.ids is answer.extra_fields["topk_ids"]
    assert got.topk.log_probs is answer.extra_fields["topk_log_probs"]


def test_request_carries_the_refine_context_and_the_settings(make_teacher, rewrite, tokenizer):
    teacher = make_teacher(output_of([tokenizer.eos_token_id]))
    got = rewrite(teacher)
    (request,) = teacher.client.requests
    assert request["prompt_ids"] == got.prompt.ids
    assert "Problem: 12+34=?" in tokenizer.decode(got.prompt.ids)
    assert "12+34=47" in tokenizer.decode(got.prompt.ids)
    assert request["sampling_params"] == {"max_tokens": 12, "temperature": 0.7, "top_p": 0.9, "top_k": 20}
    assert request["topk"] == TOP_K
    assert "score_from" not in request


def test_every_request_has_an_id_of_its_own(make_teacher, rewrite, tokenizer):
    teacher = make_teacher(output_of([tokenizer.eos_token_id]))
    rewrite(teacher)
    rewrite(teacher)
    assert len({request["id"] for request in teacher.client.requests}) == 2


def test_prefill_scorer_asks_for_no_rows_while_generating(make_teacher, rewrite, config, tokenizer):
    teacher = make_teacher(output_of([5, tokenizer.eos_token_id]), teacher=replace(config.teacher, scorer="prefill"))
    got = rewrite(teacher)
    assert (got.verdict, got.topk) == (Verdict.ACCEPTED, None)
    assert teacher.client.requests[0]["topk"] == 1


@pytest.mark.parametrize(
    ("num_tokens", "ended", "finish_reason", "verdict"),
    [
        (0, True, "stop", Verdict.EMPTY),
        (0, False, "length", Verdict.EMPTY),
        (12, False, "length", Verdict.UNFINISHED),
        (MAX_RESPONSE_LENGTH, True, "stop", Verdict.OVERLONG),
        (MAX_RESPONSE_LENGTH - 1, True, "stop", Verdict.ACCEPTED),
        (2, False, "abort", Verdict.FAILED),
    ],
)
def test_verdict_and_the_tokens_it_is_about(
    make_teacher, rewrite, tokenizer, num_tokens, ended, finish_reason, verdict
):
    ids = [5] * num_tokens + [tokenizer.eos_token_id] * ended
    got = rewrite(make_teacher(output_of(ids, finish_reason)))
    assert (got.verdict, got.y_r_ids) == (verdict, ids)
    assert got.prompt is not None
    assert (got.topk is not None) == (verdict is Verdict.ACCEPTED)


def test_refused_request_without_any_output_is_a_failure(make_teacher, rewrite):
    # What a server sends whose engine refused: no token, no rows.
    refused = TokenOutput(token_ids=[], stop_reason="aborted", extra_fields={"finish_reason": "abort"})
    got = rewrite(make_teacher(refused))
    assert (got.verdict, got.y_r_ids, got.topk) == (Verdict.FAILED, [], None)


@pytest.mark.parametrize("error", [RuntimeError("engine dead"), ValueError("no room"), TimeoutError()])
def test_server_that_raises_is_a_verdict_and_is_logged(make_teacher, rewrite, caplog, error):
    got = rewrite(make_teacher(error))
    assert (got.verdict, got.y_r_ids, got.topk) == (Verdict.FAILED, [], None)
    assert got.prompt is not None
    assert caplog.records[-1].exc_info[1] is error


def test_context_that_cannot_fit_sends_nothing(make_teacher, rewrite, config):
    teacher = make_teacher(output_of([5]), rewrite=replace(config.rewrite, max_prompt_length=10))
    got = rewrite(teacher)
    assert (got.verdict, got.prompt, got.y_r_ids) == (Verdict.PROMPT_TOO_LONG, None, [])
    assert teacher.client.requests == []


def test_long_rollout_is_cut_and_the_cut_is_reported(make_teacher, rewrite, tokenizer):
    teacher = make_teacher(output_of([5, tokenizer.eos_token_id]))
    got = rewrite(teacher, y_o="1+1=2, " * 100)
    assert got.verdict is Verdict.ACCEPTED
    assert got.prompt.num_cut > 0
    assert len(teacher.client.requests[0]["prompt_ids"]) <= 200


def test_times_enclose_the_request(make_teacher, rewrite, tokenizer):
    before = time.time()
    got = rewrite(make_teacher(output_of([5, tokenizer.eos_token_id])))
    assert before <= got.started <= got.ended <= time.time()


def test_scoring_asks_for_the_response_after_its_context(make_teacher):
    teacher = make_teacher(output_of([], num_rows=2))
    topk = asyncio.run(teacher.score([7, 8, 9], [4, 2]))
    (request,) = teacher.client.requests
    assert (request["prompt_ids"], request["score_from"]) == ([7, 8, 9, 4, 2], 3)
    assert request["topk"] == TOP_K
    assert topk.ids.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert topk.log_probs.tolist() == [[0, -1, -2], [-3, -4, -5]]


def test_aborted_scoring_is_an_error(make_teacher):
    aborted = TokenOutput(token_ids=[], stop_reason="aborted", extra_fields={"finish_reason": "abort"})
    with pytest.raises(RuntimeError, match="aborted a scoring request"):
        asyncio.run(make_teacher(aborted).score([7], [4]))


def test_error_of_the_server_while_scoring_is_the_callers(make_teacher):
    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(make_teacher(ConnectionError("gone")).score([7], [4]))


@pytest.fixture
def base_student(make_teacher, config, tokenizer):
    """A teacher of a student that ends its turns with another token, and whether the two count as one."""

    def make(answer, *, eos_remap=True, scorer="generation"):
        settings = replace(config.teacher, eos_remap=eos_remap, scorer=scorer)
        return make_teacher(answer, student_eos=tokenizer.pad_token_id, teacher=settings)

    return make


def test_ends_of_turn_trade_places_in_a_rewrite(base_student, rewrite, tokenizer):
    theirs, ours = tokenizer.eos_token_id, tokenizer.pad_token_id
    answer = output_of([5, ours, theirs])
    answer.extra_fields["topk_ids"] = np.array([[5, theirs, ours], [ours, 6, 7], [theirs, 8, ours]], dtype=np.int32)
    got = rewrite(base_student(answer))
    assert (got.verdict, got.y_r_ids) == (Verdict.ACCEPTED, [5, theirs, ours])
    assert got.topk.ids.tolist() == [[5, ours, theirs], [theirs, 6, 7], [ours, 8, theirs]]
    assert got.topk.ids.dtype == np.int32
    assert got.topk.log_probs is answer.extra_fields["topk_log_probs"]


def test_a_rewrite_is_judged_by_the_teachers_own_end_of_turn(base_student, rewrite, tokenizer):
    # The student's token in the middle of nothing ends no turn of the teacher's.
    got = rewrite(base_student(output_of([5, tokenizer.pad_token_id], "length")))
    assert got.verdict is Verdict.UNFINISHED


def test_the_teacher_reads_its_own_end_of_turn(base_student, tokenizer):
    theirs, ours = tokenizer.eos_token_id, tokenizer.pad_token_id
    answer = output_of([], num_rows=2)
    answer.extra_fields["topk_ids"] = np.array([[5, 1, theirs], [theirs, ours, 4]], dtype=np.int32)
    teacher = base_student(answer, scorer="prefill")
    topk = asyncio.run(teacher.score([7, ours], [4, ours]))
    (request,) = teacher.client.requests
    # The context is the teacher's own and stays as it is.
    assert (request["prompt_ids"], request["score_from"]) == ([7, ours, 4, theirs], 2)
    assert topk.ids.tolist() == [[5, 1, ours], [ours, theirs, 4]]


def test_renaming_twice_is_no_renaming(base_student):
    teacher = base_student(output_of([]))
    ids = list(range(20))
    assert teacher.in_teacher_tokens(ids) != ids
    assert teacher.in_teacher_tokens(teacher.in_teacher_tokens(ids)) == ids
    assert teacher.in_teacher_tokens([]) == []


@pytest.mark.parametrize("eos_remap", [True, False])
def test_nothing_is_renamed_unless_asked_for_and_needed(make_teacher, base_student, config, eos_remap):
    same_end = make_teacher(output_of([]), teacher=replace(config.teacher, eos_remap=eos_remap))
    assert same_end.in_teacher_tokens([0, 1, 2, 3]) == [0, 1, 2, 3]
    assert base_student(output_of([]), eos_remap=False).in_teacher_tokens([0, 1, 2, 3]) == [0, 1, 2, 3]


def test_teacher_that_scores_in_the_trainer_is_asked_for_no_rows(make_teacher, rewrite, config, tokenizer):
    teacher = make_teacher(output_of([5, tokenizer.eos_token_id]), teacher=replace(config.teacher, scorer="engine"))
    got = rewrite(teacher)
    assert (got.verdict, got.topk) == (Verdict.ACCEPTED, None)
    assert teacher.client.requests[0]["topk"] == 1
