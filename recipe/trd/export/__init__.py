"""Exports a checkpoint as a Hugging Face model or a PEFT adapter, and proves that it is what was trained.

| file | what |
|---|---|
| checkpoint.py | the run's settings, and whole tensors from the shards of any number of ranks |
| trainer_lora.py | the run's LoRA adapters: rank, alpha and modules |
| compared_models.py | the trainer's model as in the shards, its adapters merged, what was written, and the base |
| texts.py | the held-out text on which models are compared |
| proof.py | differences of log-probs, and which of them are allowed |
| export_inputs.py | what was asked for, and everything it needs |
| write_model.py | the files, and the log-probs of the trainer's model |
| proved_export.py | the order of the steps: nothing gets the name of the output folder before it is proved |

verl's own merger is not used: it rounds every tensor to bfloat16 before anything else, and leaves adapters in a folder
beside base weights that they were not merged into.
"""
