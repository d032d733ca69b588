"""FSDP engines for distillation inside the training process: no logits, but hidden states and heads.

| file | what |
|---|---|
| causal_lm.py | a causal language model that exposes hidden states and head instead of computing logits |
| positions.py | where the response tokens of a packed, padded or sliced micro-batch lie |
| observe.py | what a loss sees of a model: states at the response tokens, and the head |
| distillation.py | `DistillationEngine`, verl's FSDP engine with a loss on hidden states; `FrozenEngine`, its teacher |
| self_teacher.py | the student's own module as teacher |
| probe.py | log-probs of a few tokens, to be compared with those of a server |
| ema.py | the moving average of the student's weights |
| worker.py | `DistillationWorker`, verl's hybrid worker with that teacher |

Registered with verl's `EngineRegistry` under the vendor `verl_ext`.
"""
