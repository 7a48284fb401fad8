"""The low-rank step: head alignment, initialisation, folding."""
