"""An agent-loop worker without its process, and a rollout for it."""

import pytest
from hydra import compose, initialize_config_dir
from unit.trd.training.agent_worker import CONFIGS, PROMPT, TOP_K
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.utils.config import omega_conf_to_dataclass

from recipe.trd.rewrite.teacher import TeacherClient
from recipe.trd.training.agent_loop import TrdAgentLoopWorker


@pytest.fixture
def make_worker(tokenizer):
    """A worker without its process: the method's settings, a teacher with a client, and a grader of known texts."""

    def make(method, *changes, client=None, student_eos=None):
        worker = object.__new__(TrdAgentLoopWorker)
        overrides = [f"method={method}", "model=tiny", "data=tiny_world", "cluster=cpu", *changes]
        with initialize_config_dir(str(CONFIGS), version_base=None):
            config = compose("trd_trainer", overrides=[f"trd.objective.top_k={TOP_K}", *overrides])
        worker.config, worker.trd = config, omega_conf_to_dataclass(config.trd)
        worker.plan, worker.tokenizer = worker.trd.teacher_plan, tokenizer
        worker.teacher = TeacherClient(
            config=worker.trd,
            client=client,
            tokenizer=tokenizer,
            eos_token_ids=[tokenizer.eos_token_id],
            student_eos_token_id=tokenizer.eos_token_id if student_eos is None else student_eos,
            max_response_length=16,
            template_kwargs={},
        )
        worker.graded = []

        async def grade(outputs, kwargs):
            output = outputs[-1]
            assert not {"teacher_ids", "teacher_logprobs", "teacher_input_ids", "trd"} & set(output.extra_fields)
            if output.reward_score is None:
                text = tokenizer.decode(output.response_ids, skip_special_tokens=True)
                worker.graded.append(text)
                output.reward_score = float("46" in text)
                output.extra_fields["reward_extra_info"] = {"acc": output.reward_score}

        worker._compute_score = grade
        return worker

    return make


@pytest.fixture
def y_o(tokenizer):
    """What verl's single-turn agent hands over: a wrong answer."""
    response = [*tokenizer.encode("47", add_special_tokens=False), tokenizer.eos_token_id]
    prompt = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=False)
    return AgentLoopOutput(
        prompt_ids=prompt,
        response_ids=response,
        response_mask=[1] * len(response),
        num_turns=2,
        metrics=AgentLoopMetrics(),
        extra_fields={"min_global_steps": 3, "max_global_steps": 3},
    )
