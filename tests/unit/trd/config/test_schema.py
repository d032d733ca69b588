"""Rules of the `trd` node: which values are refused, and that the message names the key and a way out."""

import re
from dataclasses import FrozenInstanceError, replace
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.config.schema import TrdConfig

CONFIGS = Path(__file__).parents[4] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("[!_]*.yaml"))
CROSS_ENTROPY = {"objective.divergence": "cross_entropy", "objective.support": "sampled"}
HIDDEN = {"objective.divergence": "hidden_mse", "objective.support": None}


@cache
def node_of(method):
    """The node `trd` of a method as the YAML files make it."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("trd_trainer", overrides=[f"method={method}", "model=tiny", "data=tiny_world", "cluster=cpu"])
    return OmegaConf.to_container(config, resolve=True)["trd"]


def build(changes, method="trd_opd"):
    """The node as verl builds it: Hydra instantiates every `_target_`."""
    config = OmegaConf.create(node_of(method))
    for key, value in changes.items():
        OmegaConf.update(config, key, value, force_add=True)
    return omega_conf_to_dataclass(config)


def refusal(changes, method="trd_opd"):
    """The message of the ValueError behind whatever Hydra makes of it."""
    with pytest.raises(Exception, match=r".+") as caught:
        build(changes, method)
    error = caught.value
    while not isinstance(error, ValueError) and error.__cause__ is not None:
        error = error.__cause__
    assert isinstance(error, ValueError), error
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_valid_and_know_whose_path_they_take(method):
    config = build({"objective.hidden.bridge": "maps"} if method == "oprd_bridge" else {}, method)
    assert isinstance(config, TrdConfig)
    assert config.upstream is (method in ("grpo", "opd"))


def test_maps_between_models_have_to_be_named():
    assert refusal({}, "oprd_bridge").startswith("trd.objective.hidden.bridge is not set: give the folder of maps")


@pytest.mark.parametrize(
    ("method", "has_server", "trains_both"),
    [
        ("trd_opd", True, False),
        ("trd_grpo", True, True),
        ("sft_y_r", True, False),
        ("opd_topk", True, False),
        ("opd", True, False),
        ("opd_forward_kl", False, False),
        ("eopd", False, False),
        ("oprd", False, False),
        ("grpo", False, False),
    ],
)
def test_what_a_method_needs_beside_the_trainer(method, has_server, trains_both):
    config = build({}, method)
    assert (config.has_server, config.trains_both) == (has_server, trains_both)


def test_task_reward_on_y_o_needs_no_second_sample():
    assert not build({"objective.task_reward_coef": 0.5}, "opd_forward_kl").trains_both


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("trajectory", "y_star", "y_o, y_r"),
        ("teacher.weights", "internal", "external, frozen, ema, live"),
        ("teacher.context", "y_o", "refine, vanilla, privileged"),
        ("teacher.scorer", "server", "generation, prefill, engine, none"),
        ("teacher.engine.dtype", "int8", "bf16, fp16, fp32"),
        ("rewrite.fallback", "drop", "y_o, mask"),
        ("objective.positions", "middle", "all, first, last"),
        ("objective.hidden.positions", "middle", "all, first, last"),
        ("objective.hidden.layers", "first", "all, last"),
    ],
)
def test_unknown_word_is_refused_with_those_that_are_known(key, value, allowed):
    assert refusal({key: value}) == f"trd.{key}={value!r} is not one of {allowed}"


@pytest.mark.parametrize("node", ["objective", "objective.plus"])
def test_unknown_divergence_is_refused_at_its_node(node):
    message = refusal({f"{node}.divergence": "policy_gradient"})
    assert message.startswith(f"trd.{node}.divergence='policy_gradient' is not one of forward_kl, reverse_kl, jsd, ")
    assert {"sampled_kl", "cross_entropy", "hidden_mse", "none"} <= set(message.replace(",", "").split())


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("rewrite.max_prompt_length", 0, "at least 1"),
        ("rewrite.max_response_length", 0, "at least 1"),
        ("rewrite.temperature", -0.1, "in [0, 2]"),
        ("rewrite.temperature", 2.1, "in [0, 2]"),
        ("rewrite.top_p", 0, "in (0, 1]"),
        ("rewrite.top_p", 1.01, "in (0, 1]"),
        ("rewrite.top_k", 0, "-1 (all tokens) or at least 1"),
        ("rewrite.top_k", -2, "-1 (all tokens) or at least 1"),
        ("objective.top_k", 0, "at least 1"),
        ("objective.plus.top_k", -1, "at least 1"),
        ("objective.coef", 0, "more than 0; divergence none leaves a term out"),
        ("objective.plus.coef", -1, "more than 0; divergence none leaves a term out"),
        ("objective.task_reward_coef", -0.1, "at least 0"),
        ("poll_interval_s", 0, "more than 0"),
        ("health_interval_s", -1, "more than 0"),
    ],
)
def test_number_out_of_range_is_refused_with_its_range(key, value, rule):
    assert refusal({key: value}) == f"trd.{key}={value} must be {rule}"


@pytest.mark.parametrize(
    ("key", "value"),
    [("rewrite.temperature", 0), ("rewrite.temperature", 2), ("rewrite.top_p", 0.01), ("rewrite.top_k", 1)],
)
def test_ends_of_a_range_are_inside(key, value):
    assert OmegaConf.select(OmegaConf.create(dict(build({key: value}).rewrite)), key.split(".")[1]) == value


@pytest.mark.parametrize(
    ("method", "changes", "keys", "remedy"),
    [
        (
            "trd_opd",
            {"teacher": None},
            ["trd.objective.divergence='forward_kl'", "trd.teacher=null"],
            "choose the method by its name, method=...",
        ),
        (
            "trd_opd",
            {"objective.divergence": "none", "objective.support": None},
            ["trd.objective.divergence='none'", "trd.teacher='external' weights"],
            "choose the method by its name, method=...",
        ),
        ("grpo", {"upstream": False}, ["trd.objective.divergence=none"], "choose method=grpo"),
        (
            "opd_topk",
            {"teacher.scorer": "generation"},
            ["trd.teacher.scorer=generation", "y_o is the student's"],
            "set trd.teacher.scorer=prefill or engine",
        ),
        (
            "trd_opd",
            {"teacher.context": "vanilla"},
            ["trd.teacher.scorer=generation", "refine, not vanilla"],
            "set trd.teacher.context=refine, or trd.teacher.scorer=prefill or engine",
        ),
        (
            "trd_opd",
            {"objective.support": "full"},
            ["trd.teacher.scorer=generation cannot serve divergence forward_kl", "support full needs more"],
            "set trd.teacher.scorer=engine or support=teacher_topk",
        ),
        (
            "opd_topk",
            {"objective.support": "student_topk"},
            ["trd.teacher.scorer=prefill cannot serve divergence reverse_kl", "support student_topk needs more"],
            "set trd.teacher.scorer=engine or support=teacher_topk",
        ),
        (
            "trd_opd",
            {"objective.divergence": "sampled_kl", "objective.support": "sampled"},
            ["trd.teacher.scorer=generation cannot serve divergence sampled_kl"],
            "set trd.teacher.scorer=engine",
        ),
        (
            "trd_opd",
            {"objective.entropy_above": 0.8},
            ["trd.teacher.scorer=generation", "the entropy gate needs the teacher's whole vocabulary"],
            "set trd.teacher.scorer=engine",
        ),
        (
            "eopd",
            {"teacher.scorer": "prefill"},
            ["trd.teacher.scorer=prefill cannot serve divergence sampled_kl"],
            "set trd.teacher.scorer=engine",
        ),
        (
            "trd_opd",
            HIDDEN,
            ["trd.teacher.scorer=generation cannot serve divergence hidden_mse", "hidden states"],
            "set trd.teacher.scorer=engine",
        ),
        (
            "oprd",
            {"teacher.scorer": "none"},
            ["trd.teacher.scorer=none cannot serve divergence hidden_mse"],
            "set trd.teacher.scorer=engine",
        ),
        (
            "opd_forward_kl",
            {"teacher.scorer": "none"},
            ["trd.teacher.scorer=none cannot serve divergence forward_kl", "no distribution of the teacher"],
            "set trd.teacher.scorer=generation, prefill or engine",
        ),
        (
            "trd_opd",
            {
                "objective.plus.divergence": "reverse_kl",
                "objective.plus.support": "teacher_topk",
                "objective.plus.top_k": 65,
            },
            ["trd.objective.plus.top_k=65 exceeds trd.objective.top_k=64"],
            "raise the latter",
        ),
        (
            "sft_y_r",
            {"rewrite.fallback": "y_o"},
            ["cross_entropy would teach the student its own y_o"],
            "set trd.trajectory=y_r and trd.rewrite.fallback=mask",
        ),
        (
            "opd_forward_kl",
            {**CROSS_ENTROPY, "rewrite.fallback": "mask"},
            ["cross_entropy would teach the student its own y_o"],
            "set trd.trajectory=y_r and trd.rewrite.fallback=mask",
        ),
        (
            "grpo",
            {"teacher.weights": "external", "objective.plus.divergence": "hidden_mse"},
            ["trd.objective.plus.divergence=hidden_mse beside no first term"],
            "set it as trd.objective.divergence",
        ),
        (
            "opd_forward_kl",
            {"objective.plus.divergence": "forward_kl", "objective.plus.support": "full"},
            ["trd.objective has forward_kl twice"],
            "a term of each kind at most",
        ),
        (
            "opd_forward_kl",
            {"objective.hidden.bridge": "maps"},
            ["trd.objective.hidden.bridge is set, but no term is hidden_mse"],
            "leave it out",
        ),
        ("opd_forward_kl", {"upstream": True}, ["trd.upstream=True with divergence forward_kl on y_o"], "method=..."),
        ("opd", {"trajectory": "y_r"}, ["trd.upstream=True with divergence sampled_kl on y_r"], "trd.upstream=False"),
        (
            "opd",
            {"objective.plus.divergence": "forward_kl", "objective.plus.support": "full"},
            ["method opd runs through verl's own losses", "trd.objective.plus.divergence"],
            "choose another method=...",
        ),
        *(
            (
                "opd",
                {f"objective.{key}": value, **more},
                ["method opd runs through verl's own losses", f"trd.objective.{key};"],
                "leave it out, or choose another method=...",
            )
            for key, value, more in (
                ("task_reward_coef", 1, {}),
                ("coef", 0.5, {}),
                ("entropy_above", 0.8, {}),
                ("positions", "last", {"objective.num_positions": 5}),
            )
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_a_remedy(method, changes, keys, remedy):
    message = refusal(changes, method)
    assert all(key in message for key in keys), message
    assert remedy in message


@pytest.mark.parametrize("node", ["objective", "objective.hidden"])
@pytest.mark.parametrize(
    ("positions", "num"), [("all", 5), ("first", None), ("last", None), ("last", 0), ("first", -1)]
)
def test_positions_and_their_number_go_together(node, positions, num):
    message = refusal({f"{node}.positions": positions, f"{node}.num_positions": num})
    assert message.startswith(f"trd.{node}.positions={positions} with num_positions={num}: first and last need a ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.support": None}, "trd.objective: forward_kl has support ''; it needs one of"),
        ({"objective.support": "sampled"}, "trd.objective: forward_kl has support 'sampled'"),
        ({"objective.tail": "cut"}, "trd.objective: support teacher_topk has tail 'cut'"),
        ({"objective.divergence": "jsd", "objective.beta": 1.5}, "trd.objective: beta is 1.5; it must lie in [0, 1]"),
        (
            {
                "objective.plus.divergence": "jsd",
                "objective.plus.support": "teacher_topk",
                "objective.plus.beta": -1,
            },
            "trd.objective.plus: beta is -1; it must lie in [0, 1]",
        ),
        ({"objective.plus.divergence": "reverse_kl"}, "trd.objective.plus: reverse_kl has support ''"),
    ],
)
def test_rules_of_a_term_name_its_node(changes, message):
    assert refusal(changes).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.clip_low": None}, "trd.objective: clip_low and clip_high come together"),
        ({"objective.estimator": "k4"}, "trd.objective: sampled_kl needs an estimator of"),
        ({"objective.position_clip": 0.1}, "trd.objective: a policy gradient has no clip of its value"),
        ({"objective.support": "full"}, "trd.objective: sampled_kl has support 'full'"),
    ],
)
def test_rules_of_the_sampled_estimators(changes, message):
    assert refusal(changes, "eopd").startswith(message)


@pytest.mark.parametrize("key", ["support", "entry_clip", "position_clip", "entropy_above"])
@pytest.mark.parametrize(("node", "method"), [("objective", "oprd"), ("objective.plus", "trd_opd")])
def test_keys_that_a_term_without_distributions_would_ignore(node, method, key):
    value = "full" if key == "support" else 0.5
    divergence = "hidden_mse" if node == "objective" else "none"
    assert refusal({f"{node}.{key}": value}, method) == (
        f"trd.{node}.{key}={value} with divergence {divergence}, which has none; set null"
    )


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("trd_opd", {"teacher.context": "vanilla", "teacher.scorer": "prefill"}),
        ("trd_opd", {"teacher.scorer": "engine", "objective.support": "full", "objective.divergence": "jsd"}),
        ("trd_opd", {"objective.positions": "last", "objective.num_positions": 20}),
        ("opd_topk", {"teacher.context": "refine"}),
        ("opd_forward_kl", {"objective.entropy_above": 0.8, "objective.position_clip": 0.1}),
        ("opd_forward_kl", {"objective.plus.divergence": "hidden_mse"}),
        ("oprd", {"objective.hidden.layers": "last"}),
        ("sft_y_r", {"teacher.scorer": "prefill"}),
        ("eopd", {"objective.estimator": "k2"}),
    ],
)
def test_axes_that_fit_can_be_combined(method, changes):
    assert build(changes, method).method == method


def test_terms_are_what_is_computed():
    objective = build({}, "eopd").objective
    sampled, forward = objective.distributions().terms
    assert (sampled.divergence, sampled.support, sampled.estimator) == ("sampled_kl", "sampled", "k1")
    assert (sampled.clip_low, sampled.clip_high, sampled.top_k, sampled.tail, sampled.beta) == (
        0.2,
        0.2,
        None,
        None,
        None,
    )
    assert (forward.divergence, forward.support, forward.tail, forward.top_k) == (
        *("forward_kl", "teacher_topk", "renormalize_teacher"),
        16,
    )
    assert (forward.entropy_above, forward.estimator, forward.clip_low, forward.coef) == (0.8, None, None, 1)
    assert objective.hidden_term is None
    assert objective.policy() is None


def test_hidden_states_beside_a_distribution():
    objective = build({"objective.plus.divergence": "hidden_mse", "objective.plus.coef": 3}, "opd_jsd").objective
    (term,) = objective.distributions().terms
    assert (term.divergence, term.beta) == ("jsd", 0.5)
    assert objective.hidden_term.coef == 3
    assert build({}, "oprd").objective.distributions() is None


def test_task_reward_is_a_clipped_policy_gradient():
    changes = {"objective.task_reward_coef": 0.3, "objective.task_clip_low": 0.1, "objective.task_clip_high": 0.4}
    (term,) = build(changes).objective.policy().terms
    assert (term.divergence, term.support, term.coef) == ("policy_gradient", "sampled", 0.3)
    assert (term.clip_low, term.clip_high) == (0.1, 0.4)


@pytest.mark.parametrize("key", ["methd", "teacher.weight", "rewrite.temprature", "objective.topk"])
def test_unknown_key_is_refused_by_its_name(key):
    with pytest.raises(Exception, match=re.escape(key.split(".")[-1])):
        build({key: 1})


@pytest.mark.parametrize("key", ["method", "rewrite.template", "objective.top_k"])
def test_there_is_no_default_outside_the_yaml(key):
    node, _, name = key.rpartition(".")
    config = OmegaConf.create(node_of("trd_opd"))
    del (OmegaConf.select(config, node) if node else config)[name]
    with pytest.raises(Exception, match=name):
        omega_conf_to_dataclass(config)


def test_values_cannot_be_changed_afterwards():
    config = build({})
    with pytest.raises(FrozenInstanceError):
        config.rewrite.fallback = "mask"
    assert replace(config.rewrite, fallback="mask").fallback == "mask"
