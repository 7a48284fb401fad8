"""Attention maps, masks made of them, and what they save."""
