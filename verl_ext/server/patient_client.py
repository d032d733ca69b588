"""verl's client of vLLM servers that does not wait for ever, asks again, and outlasts the restart of a server."""

import asyncio
import logging
import time
from typing import Any

from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput
from vllm.v1.engine.exceptions import EngineDeadError

from verl_ext.runtime.errors import causes, is_process_death, one_line

logger = logging.getLogger(__name__)

PAUSE_S = 1.0
"""Between two looks for a server that is being started again."""


class PatientClient(LLMServerClient):
    """Requests that fail or run out of time are sent again; while no server is there, they wait for one."""

    def __init__(self, config: Any, load_balancer_handle: Any = None, **kwargs: Any) -> None:
        """Arguments are verl's; patience is in `config.trd.faults`."""
        super().__init__(config, load_balancer_handle, **kwargs)
        self._timeout_s = config.trd.faults.request_timeout_s
        self._retries = config.trd.faults.request_retries

    @classmethod
    def of(cls, client: LLMServerClient) -> "PatientClient":
        """The same servers as those of verl's client."""
        return cls(client.config, client._load_balancer)

    async def generate(self, request_id: str, **request: Any) -> TokenOutput:
        """verl's.

        Raises:
            TimeoutError: no answer in time, however often it was asked.
            ValueError: the request is wrong; asking again would not help.
            Exception: what the server raised last.
        """
        failures, gone_since = 0, None
        while True:
            try:
                return await asyncio.wait_for(super().generate(request_id, **request), self._timeout_s)
            except ValueError:
                raise
            except Exception as error:
                if is_gone(error):
                    gone_since = gone_since or time.monotonic()
                    if time.monotonic() - gone_since < self._timeout_s:
                        await asyncio.sleep(PAUSE_S)
                        continue
                failures += 1
                if failures > self._retries:
                    if isinstance(error, TimeoutError):
                        raise TimeoutError(
                            f"no answer within {self._timeout_s:g} s (asked {failures} times)"
                        ) from error
                    raise
                # An error, because warnings of verl's agent-loop workers go nowhere.
                logger.error("a request failed and is sent again: %s", one_line(error))


def is_gone(error: Exception) -> bool:
    """Whether no server was there to answer, as opposed to one that refused."""
    if is_process_death(error) or any(isinstance(cause, EngineDeadError) for cause in causes(error)):
        return True
    return "No available servers" in str(error)
