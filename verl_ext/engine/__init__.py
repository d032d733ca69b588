"""FSDP engines for distillation inside the training process: no logits, but hidden rows and heads.

| file | what |
|---|---|
| causal_lm.py | a causal language model that hands over hidden states and head instead of computing logits |
| rows.py | where the response tokens of a packed, padded or sliced micro-batch lie |
| distillation.py | `DistillationEngine`, verl's FSDP engine with a loss on hidden rows; `FrozenEngine`, its teacher |
| worker.py | `DistillationWorker`, verl's hybrid worker with that teacher |

Registered with verl's `EngineRegistry` under the vendor `verl_ext`.
"""
