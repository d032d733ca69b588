"""Student, teacher and rewrite: the nodes `trd.student`, `trd.teacher` and `trd.rewrite` as frozen dataclasses."""

from dataclasses import dataclass

from verl.base_config import BaseConfig

from recipe.trd.config.axes import Fallback, Scorer, Thoughts, Weights, When
from recipe.trd.config.contexts import CONTEXTS
from recipe.trd.config.validate import at_least, member, one_of, require


@dataclass(kw_only=True)
class StudentConfig(BaseConfig):
    """What verl's keys say of the student; these follow them."""

    lora_rank: int
    """Rank of its adapters; 0: all its weights are trained."""
    lora_merge: bool
    """Whether its server gets base and adapters as one."""
    max_prompt_length: int
    """Longest prompt of the data, tokens."""
    max_response_length: int
    """Longest response that is sampled or trained on, tokens."""

    @property
    def serves_base(self) -> bool:
        """Whether its server can answer without the adapters, or with others."""
        return self.lora_rank > 0 and not self.lora_merge


@dataclass(kw_only=True)
class EngineTeacherConfig(BaseConfig):
    """The teacher beside the student in the training process (`trd.teacher.scorer=engine`)."""

    path: str | None
    """Model that scores; by default the one that also rewrites."""
    dtype: str
    """Of its weights and its forward pass: `bf16`, `fp16` or `fp32`."""
    offload: bool
    """Its weights stay in host memory except during an update."""

    def __post_init__(self) -> None:
        one_of("trd.teacher.engine.dtype", self.dtype, ("bf16", "fp16", "fp32"))


@dataclass(kw_only=True)
class TeacherConfig(BaseConfig):
    """Who teaches, what it sees, and where its distribution comes from."""

    weights: Weights
    """`external`: a model of its own, behind `distillation.teacher_models`; `frozen`: the student as it was at step 0;
    `ema`: the moving average of its weights; `live`: the student as it is."""
    ema_decay: float
    """Decay of `ema` at every optimiser step, in [0, 1)."""
    context: str
    """What the teacher sees when it scores: `vanilla` (x), `privileged` (x, y*) or `refine` (x, y_o, and y* with
    `trd.rewrite.with_reference`)."""
    template: str
    """Template of the privileged context: a file in recipe/trd/rewrite/templates, or a path that ends in .jinja."""
    max_prompt_length: int
    """Longest privileged context, tokens. The tail of y* is cut to fit."""
    scorer: Scorer
    """`generation`: top-k that its server returns while it writes y_r; `prefill`: a second pass over context +
    response on the server; `engine`: the teacher as an FSDP model beside the student: whole vocabulary and hidden
    states; `none`: it only rewrites."""
    eos_remap: bool
    """The teacher's end-of-turn token and the student's trade places in what the teacher says: for base students."""
    engine: EngineTeacherConfig

    def __post_init__(self) -> None:
        member(self, "trd.teacher", "weights", Weights)
        one_of("trd.teacher.context", self.context, CONTEXTS)
        require(0 <= self.ema_decay < 1, "trd.teacher.ema_decay", self.ema_decay, "in [0, 1)")
        at_least("trd.teacher.max_prompt_length", self.max_prompt_length, 1)
        member(self, "trd.teacher", "scorer", Scorer)


@dataclass(kw_only=True)
class RejectConfig(BaseConfig):
    """Rewrites that are rejected beside those that cannot be trained on (empty, overlong); see rewrite/rejection.py."""

    unfinished: bool
    """The teacher ran into its token limit; false trains on a y_r without an end of turn."""
    copy: bool
    """y_r is y_o, token by token."""
    repeated_frac_above: float | None
    """Share of the tokens of y_r that repeat an earlier passage of it, in [0, 1]."""
    length_ratio_below: float | None
    """Tokens of y_r for each of y_o."""
    length_ratio_above: float | None
    meta: bool
    """y_r speaks of an attempt, an earlier solution or a reference."""
    copied_frac_above: float | None
    """Share of the tokens of y_r that were copied from the reference, in [0, 1]."""
    student_log_prob_below: float | None
    """Mean log-prob of y_r under the student's server, nats a token; costs one scoring request a rewrite."""
    no_answer: bool
    """The reward function finds no answer in y_r (an empty `pred`)."""
    wrong: bool
    """The reward function finds y_r wrong (`acc`, else `score`, below 1)."""

    def __post_init__(self) -> None:
        node = "trd.rewrite.reject"
        for key in ("repeated_frac_above", "copied_frac_above"):
            value = getattr(self, key)
            require(value is None or 0 <= value < 1, f"{node}.{key}", value, "in [0, 1), or null")
        low, high = self.length_ratio_below, self.length_ratio_above
        require(low is None or low > 0, f"{node}.length_ratio_below", low, "more than 0, or null")
        require(high is None or high > (low or 0), f"{node}.length_ratio_above", high, "more than the lower bound")
        floor = self.student_log_prob_below
        require(floor is None or floor < 0, f"{node}.student_log_prob_below", floor, "less than 0, or null")


@dataclass(kw_only=True)
class RewriteConfig(BaseConfig):
    """How y_r is asked for, and what happens to a sample whose rewrite is rejected."""

    weights: Weights | None
    """Whose weights write y_r: `external` on the teacher's server; `live` on the student's; `frozen` on the student's
    without its adapters (LoRA), else on a server of its own; `ema` on the student's with averaged adapters; null:
    whoever teaches."""
    template: str
    """Name of a file in recipe/trd/rewrite/templates, or a path that ends in .jinja."""
    with_reference: bool
    """Whether the refine context shows y*, the reference solution."""
    max_prompt_length: int
    """Longest refine context, tokens. The tail of y_o is cut to fit, then that of y*."""
    max_response_length: int
    """Most tokens of y_r, end of turn included. More than data.max_response_length only makes overlong rewrites."""
    temperature: float
    """Sampling temperature of y_r, in [0, 2]; 0 is greedy."""
    top_p: float
    """Nucleus of y_r, in (0, 1]."""
    top_k: int
    """Most likely tokens that y_r is drawn from; -1 is all."""
    when: When
    """`always`, or `incorrect_only`: a y_o that is right is not rewritten, and goes by `fallback`."""
    thoughts: Thoughts
    """Thoughts (`<think>...</think>`) inside y_r: `strip`, `reject` or `keep`."""
    reject: RejectConfig
    retries: int
    """How often the teacher is asked again after a rejected rewrite."""
    fallback: Fallback
    """A sample without an accepted rewrite is trained on `y_o` under a context without the rewrite, or left out
    (`mask`)."""

    def __post_init__(self) -> None:
        if self.weights is not None:
            member(self, "trd.rewrite", "weights", Weights)
        member(self, "trd.rewrite", "when", When)
        member(self, "trd.rewrite", "thoughts", Thoughts)
        member(self, "trd.rewrite", "fallback", Fallback)
        at_least("trd.rewrite.retries", self.retries, 0)
        require(
            self.retries == 0 or self.temperature > 0,
            "trd.rewrite.retries",
            self.retries,
            "0 with trd.rewrite.temperature=0, which writes the same again; raise the temperature",
        )
        at_least("trd.rewrite.max_prompt_length", self.max_prompt_length, 1)
        at_least("trd.rewrite.max_response_length", self.max_response_length, 1)
        # The server would refuse every request instead, and every sample would fall back.
        require(0 <= self.temperature <= 2, "trd.rewrite.temperature", self.temperature, "in [0, 2]")
        require(0 < self.top_p <= 1, "trd.rewrite.top_p", self.top_p, "in (0, 1]")
        require(self.top_k == -1 or self.top_k >= 1, "trd.rewrite.top_k", self.top_k, "-1 (all tokens) or at least 1")
