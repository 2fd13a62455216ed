"""The work of the commands. A module is imported only when one of its commands runs, so its imports
may be slow.
"""
