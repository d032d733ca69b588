"""Student, teacher and rewrite: the nodes `trd.student`, `trd.teacher` and `trd.rewrite` as frozen dataclasses."""

from dataclasses import dataclass

from verl.base_config import BaseConfig

from recipe.trd.config.axes import Fallback, Scorer, Weights
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
    fallback: Fallback
    """A rejected rewrite is replaced by `y_o` under a context without it, or the sample is left out (`mask`)."""

    def __post_init__(self) -> None:
        if self.weights is not None:
            member(self, "trd.rewrite", "weights", Weights)
        member(self, "trd.rewrite", "fallback", Fallback)
        at_least("trd.rewrite.max_prompt_length", self.max_prompt_length, 1)
        at_least("trd.rewrite.max_response_length", self.max_response_length, 1)
        # The server would refuse every request instead, and every sample would fall back.
        require(0 <= self.temperature <= 2, "trd.rewrite.temperature", self.temperature, "in [0, 2]")
        require(0 < self.top_p <= 1, "trd.rewrite.top_p", self.top_p, "in (0, 1]")
        require(self.top_k == -1 or self.top_k >= 1, "trd.rewrite.top_k", self.top_k, "-1 (all tokens) or at least 1")
