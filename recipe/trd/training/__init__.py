"""A training step: task runner, trainer, agent loop and worker as verl's registries pick them, and the loss."""
