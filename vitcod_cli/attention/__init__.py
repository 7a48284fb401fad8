"""Step 2's maths: the mean attention map, and what its entries are worth."""
