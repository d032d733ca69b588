"""What verl 0.9.1 lacks, with no word of TRD in it: a CPU platform, top-k log-probs from the server, exact divergences.

Imports verl, torch and vllm only; nothing here knows `recipe`.
"""
