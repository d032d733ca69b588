"""OPRD: maps between the hidden states of two models, and how they are fitted."""
