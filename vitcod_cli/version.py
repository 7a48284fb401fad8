"""The version, for whoever needs it without the Python API."""

__version__ = "0.1.0"
