"""The node `trd.faults` as a frozen dataclass: what a run does about faults (docs/reliability.md)."""

from dataclasses import dataclass

from verl.base_config import BaseConfig

from recipe.trd.config.validate import at_least, require


@dataclass(kw_only=True)
class FaultsConfig(BaseConfig):
    """How long is waited, how often something is tried again, and when a run gives up."""

    request_timeout_s: float
    """Longest wait for one answer of a server, and for a server that is being started again, s."""
    request_retries: int
    """How often a request that failed or ran out of time is sent again."""
    reward_timeout_s: float
    """Longest wait for the reward function on one response, s."""
    teacher_restarts: int
    """How often a teacher's server that died is started again while the run goes on."""
    restarts: int
    """How often a run whose processes died goes on from its newest checkpoint by itself."""
    max_skipped_updates: int
    """Updates in a row that are skipped for a gradient that is not finite, before the run ends."""

    def __post_init__(self) -> None:
        for key in ("request_timeout_s", "reward_timeout_s"):
            require(getattr(self, key) > 0, f"trd.faults.{key}", getattr(self, key), "more than 0")
        for key in ("request_retries", "teacher_restarts", "restarts"):
            at_least(f"trd.faults.{key}", getattr(self, key), 0)
        at_least("trd.faults.max_skipped_updates", self.max_skipped_updates, 1)
