"""Settings that do nothing in a method are refused, with what would make them act; shipped presets are not."""

from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.config import acting_keys
from recipe.trd.preflight import unused_keys

CONFIGS = Path(__file__).parents[4] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("[!_]*.yaml"))
ACTOR, LOSS = "actor_rollout_ref.actor", "distillation.distillation_loss"


@cache
def composed(method, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("trd_trainer", overrides=[f"method={method}", "model=tiny", "data=tiny_world", *overrides])


def check(method, *overrides):
    config = composed(method, *overrides)
    unused_keys.check(config, omega_conf_to_dataclass(config.trd))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_as_it_is_shipped_has_no_such_key(method):
    check(method, *(["trd.objective.hidden.bridge=maps"] if method == "oprd_bridge" else []))


@pytest.mark.parametrize(
    ("method", "override"),
    [
        # D1 and D4: verl's own path reads nothing of these.
        ("opd", "trd.teacher.eos_remap=true"),
        ("opd", "trd.teacher.weights=ema"),
        ("opd", "trd.teacher.weights=live"),
        ("opd", "trd.teacher.context=privileged"),
        ("opd", "trd.teacher.context=refine"),
        ("opd", "trd.teacher.scorer=engine"),
        ("opd", "trd.objective.estimator=k2"),
        ("opd", "trd.objective.clip_low=0.1"),
        ("opd", "trd.objective.clip_high=0.3"),
        ("opd", "trd.objective.top_k=8"),
        ("opd", "trd.teacher.engine.dtype=fp32"),
        ("grpo", "trd.objective.top_k=8"),
        ("grpo", "trd.rewrite.temperature=0.5"),
        ("grpo", "trd.reference_key=answer"),
        ("grpo", "trd.server_gap_stop=1"),
        ("opd", "trd.server_gap_warn=1"),
        # Axes that this method does not use.
        ("opsd", "trd.rewrite.temperature=0.5"),
        ("opsd", "trd.rewrite.fallback=mask"),
        ("opsd", "trd.rewrite.when=incorrect_only"),
        ("grpo", "trd.faults.reward_timeout_s=5"),
        ("opd", "trd.faults.request_retries=5"),
        ("opsd", "trd.faults.teacher_restarts=5"),
        ("opd", "trd.rewrite.thoughts=reject"),
        ("grpo", "trd.rewrite.retries=2"),
        ("opsd", "trd.rewrite.reject.wrong=true"),
        ("opsd", "trd.rewrite_thinking=true"),
        ("grpo", "trd.rewrite_thinking=true"),
        ("trd_opd", "trd.rewrite.reject.copied_frac_above=0.5"),
        ("opsd", "trd.rewrite.template=math_refine"),
        ("opsd", "trd.teacher.ema_decay=0.5"),
        ("opsd", "trd.teacher.engine.path=elsewhere"),
        ("opsd", "trd.teacher.eos_remap=true"),
        ("opd_forward_kl", "trd.teacher.template=math_privileged"),
        ("opd_forward_kl", "trd.teacher.max_prompt_length=99"),
        ("opd_topk", "trd.teacher.engine.offload=true"),
        ("trd_opd", "trd.objective.beta=0.1"),
        ("trd_opd", "trd.objective.estimator=k3"),
        ("trd_opd", "trd.objective.plus.coef=2"),
        ("trd_opd", "trd.objective.plus.top_k=3"),
        ("trd_opd", "trd.objective.hidden.normalize=true"),
        ("trd_opd", "trd.objective.task_clip_low=0.1"),
        ("trd_opsd", "trd.objective.tail=drop"),
        ("oprd", "trd.objective.positions=first"),
        # D6 and D13: keys of verl's own losses.
        ("trd_opd", f"{ACTOR}.clip_ratio_low=0.1"),
        ("trd_opd", f"{ACTOR}.clip_ratio_c=5"),
        ("trd_grpo", f"{ACTOR}.clip_ratio=0.1"),
        ("trd_grpo", f"{ACTOR}.policy_loss.loss_mode=gspo"),
        ("trd_opd", f"{ACTOR}.kl_loss_coef=0.1"),
        ("trd_opd", "algorithm.kl_ctrl.kl_coef=0.1"),
        ("trd_opd", "algorithm.rollout_correction.bypass_mode=true"),
        ("trd_opd", "algorithm.norm_adv_by_std_in_grpo=false"),
        ("trd_opd", "algorithm.gamma=0.9"),
        ("trd_opd", f"{LOSS}.loss_max_clamp=1"),
        ("grpo", f"{LOSS}.log_prob_min_clamp=-10"),
        ("grpo", f"{LOSS}.clip_ratio_low=0.1"),
    ],
)
def test_a_key_that_does_nothing_is_refused_by_name(method, override):
    key, _, value = override.partition("=")
    extra = ["trd.objective.num_positions=3"] if override.endswith("positions=first") else []
    with pytest.raises(ValueError, match=r"does nothing in method .*: it needs .*; leave it at ") as caught:
        check(method, override, *extra)
    assert str(caught.value).startswith(f"{key}={value.title() if value in ('true', 'false') else value} ")


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("grpo", [f"{ACTOR}.clip_ratio_low=0.1", f"{ACTOR}.policy_loss.loss_mode=gspo"]),
        ("opd", [f"{LOSS}.loss_max_clamp=1", f"{LOSS}.clip_ratio_low=0.1"]),
        ("trd_grpo", [f"{ACTOR}.clip_ratio_low=0.1", f"{ACTOR}.clip_ratio_c=5"]),
        ("opsd", ["trd.teacher.weights=ema", "trd.teacher.ema_decay=0.5", "trd.teacher.template=math_privileged"]),
        ("opd_jsd", ["trd.objective.beta=0.1"]),
        ("opd_forward_kl", ["trd.teacher.context=refine", "trd.rewrite.with_reference=true"]),
        ("trd_opd", ["trd.rewrite.temperature=0", "trd.objective.top_k=8", "trd.objective.tail=drop"]),
        ("trd_opd", ["data.max_refine_length=99", "data.refine_template=math_refine"]),
        ("eopd", ["trd.objective.plus.top_k=8", "trd.objective.clip_low=0.1"]),
        ("oprd", ["trd.objective.hidden.positions=first", "trd.objective.hidden.num_positions=3"]),
    ],
    ids=str,
)
def test_a_key_that_acts_is_left_alone(method, overrides):
    check(method, *overrides)


def test_every_key_of_the_table_exists():
    for method in ("trd_opd", "grpo"):
        config = composed(method)
        for rule in acting_keys.rules():
            missing = [key for key in rule.keys if not unused_keys._has(config, key)]
            assert not missing or (method == "grpo" and all(key.startswith("trd.teacher.") for key in missing)), missing
