"""The finished model for others to run: programs without vitcod and timm in them, or weights for timm alone."""
