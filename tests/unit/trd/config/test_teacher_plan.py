"""Who holds the teacher's weights, which server writes y_r, what the teacher is shown: each rule where it is made."""

from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.config import contexts
from recipe.trd.config.contexts import ContextKind, Node
from recipe.trd.config.teacher_plan import Holder

CONFIGS = Path(__file__).parents[4] / "configs"
LORA = "actor_rollout_ref.model.lora_rank=8"
MERGED = "actor_rollout_ref.model.lora.merge=True"
TOP_K = ("trd.objective.support=teacher_topk", "trd.objective.top_k=5")
WITH_REFERENCE = "trd.rewrite.with_reference=true"


@cache
def plan_of(method, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        run = [f"method={method}", "model=tiny", "data=tiny_world", "cluster=cpu"]
        config = compose("trd_trainer", overrides=[*run, *overrides])
    return omega_conf_to_dataclass(config.trd).teacher_plan


def test_a_method_without_a_teacher_has_no_plan():
    assert plan_of("grpo") is None


@pytest.mark.parametrize(
    ("method", "overrides", "module", "scoring_server", "author"),
    [
        ("opd", (), None, Holder.OWN, None),
        ("opd", ("trd.teacher.weights=frozen", LORA), None, Holder.OWN, None),
        ("opd_forward_kl", (), Holder.OWN, None, None),
        ("trd_opd", (), None, Holder.OWN, Holder.OWN),
        ("trd_opd", ("trd.teacher.scorer=engine",), Holder.OWN, None, Holder.OWN),
        ("trd_opd", ("trd.teacher.scorer=prefill", "trd.rewrite.weights=live"), None, Holder.OWN, Holder.STUDENT),
        ("sft_y_r", (), None, None, Holder.OWN),
        ("opsd", (), Holder.OWN, None, None),
        ("opsd", (LORA,), Holder.BASE, None, None),
        ("opsd", (LORA, MERGED), Holder.BASE, None, None),
        ("opsd", ("trd.teacher.weights=ema",), Holder.AVERAGE, None, None),
        ("opsd", ("trd.teacher.weights=live",), Holder.STUDENT, None, None),
        ("trd_opsd", (), Holder.OWN, None, Holder.OWN),
        ("trd_opsd", (LORA,), Holder.BASE, None, Holder.BASE),
        ("trd_opsd", (LORA, MERGED), Holder.BASE, None, Holder.OWN),
        ("trd_opsd", (LORA, "trd.teacher.weights=ema"), Holder.AVERAGE, None, Holder.AVERAGE),
        ("trd_opsd", (LORA, "trd.teacher.scorer=generation", *TOP_K), None, Holder.BASE, Holder.BASE),
    ],
)
def test_who_holds_the_weights(method, overrides, module, scoring_server, author):
    plan = plan_of(method, *overrides)
    assert (plan.module, plan.scoring_server, plan.author) == (module, scoring_server, author)
    assert plan.is_self is method.endswith("opsd") or "trd.teacher.weights=frozen" in overrides
    assert plan.keeps_average is ("trd.teacher.weights=ema" in overrides)


@pytest.mark.parametrize(
    ("method", "overrides", "scored", "fallback", "in_use"),
    [
        ("opd", (), "vanilla", "vanilla", set()),
        ("opd_forward_kl", (), "vanilla", "vanilla", {"vanilla"}),
        ("opd_forward_kl", ("trd.teacher.context=refine",), "refine", "refine", {"refine"}),
        ("opsd", (), "privileged", "privileged", {"privileged"}),
        ("trd_opd", (), "refine", "vanilla", {"refine", "vanilla"}),
        ("trd_opd", (WITH_REFERENCE,), "refine", "privileged", {"refine", "privileged"}),
        ("trd_opd", ("trd.rewrite.fallback=mask",), "refine", "vanilla", {"refine"}),
        ("trd_opsd", (), "refine", "privileged", {"refine", "privileged"}),
        ("trd_opsd", ("trd.teacher.context=vanilla",), "vanilla", "vanilla", {"refine", "vanilla"}),
        ("sft_y_r", (), "refine", "vanilla", {"refine"}),
    ],
)
def test_which_contexts_there_are_and_what_falls_back_to_what(method, overrides, scored, fallback, in_use):
    plan = plan_of(method, *overrides)
    assert (plan.scored.name, plan.fallback.name) == (scored, fallback)
    assert {context.name for context in plan.in_use} == in_use
    assert {context.name for context in plan.possible} >= in_use | {"vanilla", scored, fallback}
    shows_reference = {"privileged"} & {scored, fallback} or WITH_REFERENCE in overrides or method == "trd_opsd"
    assert plan.needs_reference is bool(shows_reference)


def test_lengths_are_those_of_the_longest_context():
    lengths = ("data.max_prompt_length=10", "data.max_response_length=20", "data.max_refine_length=50")
    plan = plan_of("trd_opsd", *lengths, "trd.rewrite.max_response_length=30", "trd.teacher.max_prompt_length=55")
    longest = {context.name: context.max_length for context in plan.possible}
    # y_r may be written longer than it may be trained on.
    assert longest == {"vanilla": 30, "refine": 80, "privileged": 75}
    assert plan.longest.name == "refine"
    scored = plan_of("opd_forward_kl", *lengths, "trd.teacher.context=refine", "trd.rewrite.max_response_length=30")
    assert scored.longest.max_length == 70


def test_a_switch_for_thoughts_belongs_to_its_contexts():
    plan = plan_of("trd_opsd", "trd.teacher_thinking=true", "trd.rewrite_thinking=false")
    switches = {context.name: (context.thinking_key, context.thinking) for context in plan.possible}
    assert switches == {
        "vanilla": ("trd.teacher_thinking", True),
        "privileged": ("trd.teacher_thinking", True),
        "refine": ("trd.rewrite_thinking", False),
    }


def test_a_new_context_is_one_entry(monkeypatch):
    kind = ContextKind(Node.TEACHER, shows_y_o=True, shows_reference=True)
    monkeypatch.setitem(contexts.CONTEXTS, "graded", kind)
    plan = plan_of("trd_opd", "trd.teacher.scorer=engine", "trd.teacher.context=graded")
    shown = (plan.scored.name, plan.scored.shows_y_o, plan.scored.shows_reference, plan.scored.template)
    assert shown == ("graded", True, True, "tiny_privileged")
    # A y_o that stands in for a rejected rewrite is not shown to its own judge.
    assert plan.fallback.name == "privileged"
    assert plan.needs_reference
    plan_of.cache_clear()
