"""Files in and out: checkpoints, attention maps, masks, run directories."""
