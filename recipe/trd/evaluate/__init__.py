"""Evaluation of a model on sets of problems: `python -m recipe.trd.evaluate MODEL --suite NAME`.

See docs/evaluation.md. Nothing here imports verl, and vLLM only where something is still to be sampled.
"""
