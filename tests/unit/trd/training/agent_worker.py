"""What tests of the agent loop share: clients that answer as verl's does, and one sample."""

import asyncio
from pathlib import Path

import numpy as np
from verl.workers.rollout.replica import TokenOutput

from recipe.trd.training.training_sample import as_sample

CONFIGS = Path(__file__).parents[4] / "configs"
PROMPT = [{"role": "user", "content": "12+34=?"}]
ROW = {"raw_prompt": PROMPT, "uid": "u", "session_id": 0, "extra_info": {"reference_solution": "12+34=46"}}
TOP_K = 3


class Client:
    """Stands for verl's `LLMServerClient`: rewrites to the text that it was given, scores with rows of its own."""

    def __init__(self, tokenizer, text="46", finish_reason="stop", fails_at=()):
        self.ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        self.finish_reason, self.fails_at = finish_reason, fails_at
        self.requests = []

    async def generate(self, request_id, *, prompt_ids, sampling_params, topk, score_from=None):
        kind = "rewrite" if score_from is None else "score"
        self.requests.append({"kind": kind, "prompt_ids": prompt_ids, "score_from": score_from})
        if kind in self.fails_at:
            raise ConnectionError("gone")
        num_rows = len(self.ids) if score_from is None else len(prompt_ids) - score_from
        ids = np.arange(num_rows * topk, dtype=np.int32).reshape(-1, topk) + (100 if kind == "score" else 0)
        fields = {"finish_reason": self.finish_reason, "topk_ids": ids, "topk_log_probs": -ids.astype(np.float32)}
        token_ids = self.ids if score_from is None else []
        return TokenOutput(token_ids=token_ids, stop_reason="completed", extra_fields=fields)


def prompt_of(worker, context, y_o_ids=()):
    return worker.teacher.prompt(context, PROMPT, y_o_ids=y_o_ids, y_star=None)


def samples_of(worker, y_o, row=ROW):
    return asyncio.run(worker._training_samples(as_sample(y_o), row))


def sample_of(worker, y_o):
    (sample,) = samples_of(worker, y_o)
    return sample, sample.extra_fields["trd"]


def response_positions(sample, name="teacher_ids"):
    num_prompt = len(sample.prompt_ids)
    rows = sample.extra_fields[name]
    assert len(rows) == num_prompt + len(sample.response_ids)
    return rows[num_prompt - 1 : -1].tolist()


class Writer(Client):
    """Rewrites to one text after the other, and scores as the student does."""

    def __init__(self, tokenizer, *texts, log_prob=-0.5):
        super().__init__(tokenizer)
        self.texts, self.tokenizer, self.log_prob = list(texts), tokenizer, log_prob

    async def generate(self, request_id, *, prompt_ids, as_student=False, **kwargs):
        if as_student:
            self.requests.append({"kind": "as student", "prompt_ids": prompt_ids, "score_from": kwargs["score_from"]})
            if isinstance(self.log_prob, Exception):
                raise self.log_prob
            own = np.full(len(prompt_ids) - kwargs["score_from"], self.log_prob, np.float32)
            return TokenOutput(token_ids=[], stop_reason="completed", extra_fields={"token_log_probs": own})
        if kwargs.get("score_from") is None:
            text = self.texts.pop(0)
            self.ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
        return await super().generate(request_id, prompt_ids=prompt_ids, **kwargs)

    def kinds(self):
        return [request["kind"] for request in self.requests]
