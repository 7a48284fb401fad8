"""What a mask buys on the paper's accelerator: the published cycle count, and an estimate of our own."""
