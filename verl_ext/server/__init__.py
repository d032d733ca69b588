"""verl's vLLM servers with top-k log-probs, and with a second LoRA adapter."""
