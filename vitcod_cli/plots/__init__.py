"""Pictures of attention maps and masks."""
