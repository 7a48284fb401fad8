"""How good a model is on images: accuracy, loss, agreement with another model, and what of it is chance."""
