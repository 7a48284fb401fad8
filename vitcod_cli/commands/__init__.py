"""One file a subcommand, and nothing else: its options, and the one function below that does the work."""
