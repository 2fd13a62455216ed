"""A steering method: the direction of ``word``, by the square of alpha."""

from analogy.steering.base import Need, steering_method
from analogy.steering.conditioning import Conditioning, Edit
from analogy.steering.words import word_direction


@steering_method(Need.WORDS, version="1")
def eased(edit: Edit, alpha: float) -> Conditioning:
    """E_A + alpha^2 (E(target word) - E(source word))."""
    return edit.source.plus(word_direction(edit), alpha**2)
