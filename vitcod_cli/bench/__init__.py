"""What a model costs: arithmetic that is counted, time and memory that are measured."""
