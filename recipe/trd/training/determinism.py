"""What a run needs beside verl's `full_determinism` to be the same again, bit for bit, also after a resume.

verl names prompts at random and takes samples in the order in which they arrive; and a server's random numbers would
depend on all that it has drawn since it was started.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig


def is_wanted(config: DictConfig) -> bool:
    """Whether the run is to be the same again: verl's `full_determinism` of the trainer, or of its servers (CUDA)."""
    actor_rollout = config.actor_rollout_ref
    return bool(actor_rollout.rollout.full_determinism or actor_rollout.actor.fsdp_config.full_determinism)


def request_seed(kwargs: Mapping[str, Any], *, seed: int, purpose: str) -> int:
    """Seed of one request, the same whenever this sample of this step is drawn.

    Args:
        kwargs: columns of the sample, as verl hands them to its agent loop.
        seed: `actor_rollout_ref.rollout.seed`.
        purpose: tells requests for one sample apart.
    """
    messages = [dict(message) for message in kwargs["raw_prompt"]]
    step, index, session = (str(kwargs.get(name)) for name in ("global_steps", "index", "session_id"))
    return zlib.crc32(json.dumps([seed, purpose, step, index, session, messages], default=str).encode())


def order_by_content(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[int]:
    """Order of samples that does not depend on when they arrived.

    Args:
        prompts: token ids of each.
        responses: token ids of each.

    Returns:
        Indices, sorted by prompt, then response.
    """
    return sorted(range(len(prompts)), key=lambda index: (list(prompts[index]), list(responses[index])))
