"""What a file is and what is in it: checkpoints, attention maps and masks, ours, published or timm's."""
