"""The command line itself: how options are declared, read, shown; no torch, no maths."""
