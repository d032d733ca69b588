"""The axes of a method as enumerations: every value that a key of `trd` with a fixed set of words may have.

Divergences, supports and tails are registered in `verl_ext.divergence`; contexts in contexts.py.
"""

from enum import StrEnum


class Trajectory(StrEnum):
    """`trd.trajectory`: what the student is trained on."""

    Y_O = "y_o"
    """Its own rollout."""
    Y_R = "y_r"
    """The teacher's rewrite of it."""


class Weights(StrEnum):
    """`trd.teacher.weights` and `trd.rewrite.weights`: whose weights score, and whose write y_r."""

    EXTERNAL = "external"
    """A model of its own, behind `distillation.teacher_models`."""
    FROZEN = "frozen"
    """The student as it was at step 0."""
    EMA = "ema"
    """The moving average of the student's weights."""
    LIVE = "live"
    """The student as it is."""


class Scorer(StrEnum):
    """`trd.teacher.scorer`: where the teacher's distribution comes from."""

    GENERATION = "generation"
    """The top-k that its server returns while it writes y_r."""
    PREFILL = "prefill"
    """A second pass of its server over context and response."""
    ENGINE = "engine"
    """The teacher beside the student in the training process: whole vocabulary and hidden states."""
    NONE = "none"
    """Nowhere: the teacher only rewrites."""

    @property
    def is_server(self) -> bool:
        """Whether a server scores."""
        return self in (Scorer.GENERATION, Scorer.PREFILL)


class When(StrEnum):
    """`trd.rewrite.when`: for which rollouts the teacher is asked for a rewrite."""

    ALWAYS = "always"
    INCORRECT_ONLY = "incorrect_only"
    """Those that the reward function finds wrong."""


class Thoughts(StrEnum):
    """`trd.rewrite.thoughts`: what becomes of thoughts (`<think>`) inside a rewrite."""

    STRIP = "strip"
    """They are cut out; what follows them is y_r."""
    REJECT = "reject"
    """The rewrite is rejected."""
    KEEP = "keep"
    """They are trained on."""


class Fallback(StrEnum):
    """`trd.rewrite.fallback`: what becomes of a sample without an accepted rewrite."""

    Y_O = "y_o"
    """y_o stands in for y_r."""
    MASK = "mask"
    """The sample is left out of the loss."""


class Positions(StrEnum):
    """`positions` of `trd.objective` and its `hidden`: which tokens of a response count."""

    ALL = "all"
    FIRST = "first"
    LAST = "last"


class Layers(StrEnum):
    """`trd.objective.hidden.layers`: which hidden states are compared."""

    ALL = "all"
    LAST = "last"
