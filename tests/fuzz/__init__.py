"""Hostile files, names and values by the thousand: every reader against every kind of damage."""
