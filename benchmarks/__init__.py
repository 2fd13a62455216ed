"""Cases that test the model: each asserts a claim about steering. ``tests`` tests the suite."""
