"""One file per command; each has ``command``, the function, and ``EXAMPLES`` for its help.

These modules are imported for any ``--help``, so they import what is heavy when a command runs.
"""
