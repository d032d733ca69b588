"""A checkpoint of a run as a Hugging Face model, or as a PEFT adapter, that is proved to be what was trained.

| file | what |
|---|---|
| checkpoint.py | the run's settings, and whole tensors from the shards of any number of ranks |
| models.py | the trainer's model as the shards hold it, its adapters merged, what was written, and the base |
| texts.py | the held-out text on which they are compared |
| proof.py | differences of log-probs, and which of them are allowed |
| run.py | the order of things: nothing has the name of the output folder before it is proved |

verl's own merger is not used: it rounds every tensor to bfloat16 before anything else, and leaves adapters in a folder
beside base weights that they were not merged into.
"""
