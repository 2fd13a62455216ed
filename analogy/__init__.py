"""Does steering a text-to-image model by analogy work: where, and how sure can one be?"""

__version__ = "0.1.0"
