"""What the model does: each case asserts a claim about steering. ``tests`` asks what we do."""
