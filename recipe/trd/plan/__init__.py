"""Memory and GPUs of a run, computed before it starts."""
