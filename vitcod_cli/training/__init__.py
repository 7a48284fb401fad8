"""The recipe, the trainer, its saved state, and evaluation."""
