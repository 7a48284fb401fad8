"""Block-wise fitting of a compressed model to its dense teacher, without labels."""
