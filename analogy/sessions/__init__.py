"""A session: one run's study with its baseline, cases, findings, outputs and summary.

``pytest benchmarks``, ``analogy run`` and :func:`analogy.run` each run one session.
"""
