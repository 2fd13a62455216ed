"""Steering methods make a conditioning from a pair's words and prompts and a strength.

:mod:`~analogy.steering.base` defines methods and has the table of their names;
:mod:`~analogy.steering.conditioning` defines their input and output. Each method uses:

==============  =====================================================================
``lerp``        the target prompt; a straight line to it
``slerp``       the target prompt; along the sphere
``word``        the pair's two words alone (the analogy proper); never the target prompt
``category``    the category's other pairs; neither the target prompt nor the words alone
``random``      nothing: the null, as long as ``word``'s direction
``prompt``      the target prompt, in the place of the source prompt: the plain baseline
``switch``      the target prompt, in the last part of the schedule
``guidance``    the target prompt, in a noise prediction of its own
``span``        the pair's two words alone, at the tokens of the source word
``activation``  the category's other pairs, by what the denoiser computes for their prompts
``slider``      a LoRA for the pair's words or category, in the denoiser
==============  =====================================================================
"""
