"""The method, one readable file a step; what the commands and the Python API call."""
