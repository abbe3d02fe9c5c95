"""How good a model is, on labelled images, and pictures of it."""
