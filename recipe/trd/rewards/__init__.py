"""Rewards: mathematics by answer, generated code by its tests, run in a sandbox."""
