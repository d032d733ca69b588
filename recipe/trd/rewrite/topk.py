"""The teacher's top-k log-probs of one response, as its server sends them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TopKLogProbs:
    """The teacher's top-k at R positions: ids int32 [R, K], natural log-probs float32 [R, K], best first."""

    ids: np.ndarray
    log_probs: np.ndarray

    def from_token(self, start: int) -> "TopKLogProbs":
        """The rows of token `start` and those after it."""
        return self if start == 0 else TopKLogProbs(self.ids[start:].copy(), self.log_probs[start:].copy())
