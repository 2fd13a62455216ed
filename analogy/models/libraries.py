"""The libraries that load networks. Each is imported when it is first used.

Each import takes two to five seconds. A run that already has all its images, a command that only
names a model, and code that uses only tokenizers do without some of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analogy.core.deferred import deferred

if TYPE_CHECKING:
    import diffusers
    import open_clip
    import transformers
    from diffusers.loaders import single_file_model, single_file_utils
    from diffusers.utils import logging as diffusers_logging
    from peft.tuners import tuners_utils as peft_tuners
    from transformers.utils import logging as transformers_logging
else:
    diffusers = deferred("diffusers")
    diffusers_logging = deferred("diffusers.utils.logging")
    open_clip = deferred("open_clip")
    peft_tuners = deferred("peft.tuners.tuners_utils")  # an optional package
    single_file_model = deferred("diffusers.loaders.single_file_model")
    single_file_utils = deferred("diffusers.loaders.single_file_utils")
    transformers = deferred("transformers")
    transformers_logging = deferred("transformers.utils.logging")

gguf: Any = deferred("gguf")  # these two are optional packages
torchao: Any = deferred("torchao.quantization")

__all__ = [
    "diffusers",
    "diffusers_logging",
    "gguf",
    "open_clip",
    "peft_tuners",
    "single_file_model",
    "single_file_utils",
    "torchao",
    "transformers",
    "transformers_logging",
]
