"""timm's Vision Transformers with the head auto-encoder and the fixed mask."""
