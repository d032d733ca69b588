"""Which keys act in which method: one table, from which settings that would do nothing are refused.

A rule names keys, says when they act and why not otherwise. Preflight compares every key that does not act with its
default (`recipe.trd.preflight.unused_keys`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from recipe.trd.config.axes import Trajectory, Weights
from recipe.trd.config.contexts import CONTEXTS, Node
from recipe.trd.config.objective import TermConfig
from recipe.trd.config.schema import TrdConfig
from recipe.trd.config.teacher_plan import Holder
from verl_ext.divergence import TOP_K_SUPPORTS


@dataclass(frozen=True)
class Rule:
    """Keys that act together."""

    keys: tuple[str, ...]
    """Full names. A key that is a node stands for everything in it."""
    acts: Callable[[TrdConfig], bool]
    needs: str
    """What has to be set for them to act, for the message."""


def rules() -> list[Rule]:
    """The table. A key that is in no rule acts in every method."""
    # First those of verl, which defaults of `trd` follow.
    return [*_VERL, *_TEACHER, *_REWRITE, *_terms()]


def _node_shown(trd: TrdConfig, node: Node) -> bool:
    plan = trd.teacher_plan
    return plan is not None and any(CONTEXTS[context.name].node is node for context in plan.possible)


def _rewrites(trd: TrdConfig) -> bool:
    return trd.trajectory is Trajectory.Y_R and not trd.upstream


def _own_module(trd: TrdConfig) -> bool:
    return trd.teacher_plan is not None and trd.teacher_plan.module is Holder.OWN


def _own_loss(trd: TrdConfig) -> bool:
    return not trd.upstream


def _names(node: str, *keys: str) -> tuple[str, ...]:
    return tuple(f"{node}.{key}" for key in keys)


_TEACHER = [
    Rule(_names("trd.teacher", "weights", "context", "scorer"), _own_loss, "trd.upstream=false"),
    Rule(
        ("trd.teacher.ema_decay",),
        lambda trd: trd.teacher_plan is not None and trd.teacher_plan.keeps_average and not trd.upstream,
        "trd.teacher.weights=ema",
    ),
    Rule(
        _names("trd.teacher", "template", "max_prompt_length"),
        lambda trd: _own_loss(trd) and _node_shown(trd, Node.TEACHER),
        "a context with a reference: trd.teacher.context=privileged or trd.rewrite.with_reference=true",
    ),
    Rule(
        ("trd.teacher.eos_remap",),
        lambda trd: _own_loss(trd) and trd.teacher is not None and trd.teacher.weights is Weights.EXTERNAL,
        "trd.upstream=false (method=eopd, for example) and trd.teacher.weights=external",
    ),
    Rule(
        ("trd.teacher.engine.path",),
        lambda trd: _own_module(trd) and trd.teacher is not None and trd.teacher.weights is Weights.EXTERNAL,
        "trd.teacher.scorer=engine and trd.teacher.weights=external",
    ),
    Rule(
        _names("trd.teacher.engine", "dtype", "offload"),
        _own_module,
        "trd.teacher.scorer=engine and a teacher whose weights are not those of the student's module",
    ),
    Rule(_names("trd", "server_gap_warn", "server_gap_stop"), _own_loss, "trd.upstream=false"),
    Rule(
        _names("trd.faults", "request_timeout_s", "request_retries", "reward_timeout_s"),
        _own_loss,
        "trd.upstream=false",
    ),
    Rule(
        ("trd.faults.teacher_restarts",),
        lambda trd: _own_loss(trd) and trd.has_server,
        "trd.upstream=false and a teacher with a server of its own",
    ),
    Rule(
        ("trd.reference_key",),
        lambda trd: trd.teacher_plan is not None and trd.teacher_plan.needs_reference,
        "a context with a reference: trd.teacher.context=privileged or trd.rewrite.with_reference=true",
    ),
]

_REWRITE = [
    Rule(
        _names("trd.rewrite", "weights", "max_response_length", "temperature", "top_p", "top_k", "fallback"),
        _rewrites,
        "trd.trajectory=y_r",
    ),
    Rule(_names("trd.rewrite", "when", "thoughts", "retries"), _rewrites, "trd.trajectory=y_r"),
    Rule(
        ("trd.rewrite.reject.copied_frac_above",),
        lambda trd: _rewrites(trd) and trd.rewrite.with_reference,
        "trd.trajectory=y_r and trd.rewrite.with_reference=true",
    ),
    Rule(("trd.rewrite.reject",), _rewrites, "trd.trajectory=y_r"),
    Rule(
        ("trd.rewrite_thinking",),
        lambda trd: _own_loss(trd) and _node_shown(trd, Node.REWRITE),
        "trd.trajectory=y_r or trd.teacher.context=refine",
    ),
    Rule(
        _names("trd.rewrite", "template", "with_reference", "max_prompt_length"),
        lambda trd: _own_loss(trd) and _node_shown(trd, Node.REWRITE),
        "trd.trajectory=y_r or trd.teacher.context=refine",
    ),
]


def _term(node: str, term: Callable[[TrdConfig], TermConfig]) -> list[Rule]:
    def when(acts: Callable[[TermConfig], bool]) -> Callable[[TrdConfig], bool]:
        return lambda trd: _own_loss(trd) and acts(term(trd))

    return [
        Rule(_names(node, "divergence", "support"), _own_loss, "trd.upstream=false"),
        Rule((f"{node}.coef",), when(lambda one: one.divergence != "none"), f"{node}.divergence"),
        Rule((f"{node}.tail",), when(lambda one: one.support in TOP_K_SUPPORTS), "a top-k support"),
        Rule((f"{node}.beta",), when(lambda one: one.divergence == "jsd"), f"{node}.divergence=jsd"),
        Rule((f"{node}.estimator",), when(lambda one: one.divergence == "sampled_kl"), f"{node}.divergence=sampled_kl"),
        Rule(
            _names(node, "clip_low", "clip_high"),
            when(lambda one: one.divergence == "sampled_kl" and one.estimator == "k1"),
            f"{node}.divergence=sampled_kl and {node}.estimator=k1",
        ),
        Rule(
            _names(node, "entry_clip", "position_clip", "entropy_above"),
            when(lambda one: one.divergence not in ("none", "hidden_mse")),
            f"a {node}.divergence of outputs",
        ),
    ]


def _terms() -> list[Rule]:
    def has_outputs(trd: TrdConfig) -> bool:
        return _own_loss(trd) and any(term.divergence != "hidden_mse" for term in trd.objective.terms)

    def has_hidden(trd: TrdConfig) -> bool:
        return _own_loss(trd) and trd.objective.hidden_term is not None

    def has_task(trd: TrdConfig) -> bool:
        return _own_loss(trd) and trd.objective.task_reward_coef > 0

    hidden = "a term of divergence hidden_mse"
    return [
        *_term("trd.objective", lambda trd: trd.objective),
        *_term("trd.objective.plus", lambda trd: trd.objective.plus),
        # The first term's top_k is also that of the overlap metrics, and what a teacher's server sends.
        Rule(("trd.objective.top_k",), has_outputs, "a divergence of outputs"),
        Rule(
            ("trd.objective.plus.top_k",),
            lambda trd: _own_loss(trd) and trd.objective.plus.support in TOP_K_SUPPORTS,
            "a trd.objective.plus.support of top-k",
        ),
        Rule(_names("trd.objective", "positions", "num_positions"), has_outputs, "a divergence of outputs"),
        Rule(_names("trd.objective.hidden", "layers", "normalize", "positions", "num_positions"), has_hidden, hidden),
        Rule(("trd.objective.task_reward_coef",), _own_loss, "trd.upstream=false"),
        Rule(
            _names("trd.objective", "task_clip_low", "task_clip_high", "task_clip_dual"),
            has_task,
            "trd.objective.task_reward_coef",
        ),
    ]


def _never(trd: TrdConfig) -> bool:
    return False


def _verl_policy_loss(trd: TrdConfig) -> bool:
    """Whether verl's own policy loss of the task reward is what is minimised."""
    return trd.upstream and trd.teacher is None


def _verl_distillation(trd: TrdConfig) -> bool:
    return trd.upstream and trd.teacher is not None


_ACTOR = "actor_rollout_ref.actor"
_LOSS = "distillation.distillation_loss"
_VERL = [
    Rule(
        (f"{_ACTOR}.clip_ratio",),
        _never,
        f"{_ACTOR}.clip_ratio_low and clip_ratio_high, which verl's own default values put before it",
    ),
    Rule(
        _names(_ACTOR, "clip_ratio_low", "clip_ratio_high", "clip_ratio_c"),
        lambda trd: _verl_policy_loss(trd) or trd.objective.task_reward_coef > 0,
        "a policy loss of the task reward: method=grpo or trd_grpo",
    ),
    Rule(
        _names(_ACTOR, "policy_loss", "tau_pos", "tau_neg"),
        _verl_policy_loss,
        "verl's own policy loss: method=grpo",
    ),
    Rule(
        _names(_ACTOR, "kl_loss_coef", "kl_loss_type", "calculate_entropy", "calculate_sum_pi_squared"),
        lambda trd: trd.upstream,
        "verl's own losses: trd.upstream=true",
    ),
    Rule(
        _names("algorithm", "kl_penalty", "kl_ctrl", "rollout_correction", "use_pf_ppo", "pf_ppo"),
        lambda trd: trd.upstream,
        "verl's own losses: trd.upstream=true",
    ),
    Rule(
        _names("algorithm", "gamma", "lam"),
        _verl_policy_loss,
        "advantages that are discounted: method=grpo with another algorithm.adv_estimator",
    ),
    Rule(
        ("algorithm.norm_adv_by_std_in_grpo",),
        lambda trd: _verl_policy_loss(trd) or trd.objective.task_reward_coef > 0,
        "advantages of a group: method=grpo or trd_grpo",
    ),
    Rule(
        _names(_LOSS, "distillation_loss_coef", "loss_max_clamp", "log_prob_min_clamp", "policy_loss_mode"),
        _verl_distillation,
        "verl's own distillation loss: method=opd",
    ),
    Rule(
        _names(_LOSS, "clip_ratio", "clip_ratio_low", "clip_ratio_high"),
        _verl_distillation,
        "verl's own distillation loss: method=opd",
    ),
    Rule(
        ("actor_rollout_ref.model.fused_kernel_options",),
        lambda trd: trd.upstream,
        "verl's own losses: trd.upstream=true",
    ),
]
