"""Errors that are a user's to mend. The command line prints them without a traceback."""


class TwillcoreError(Exception):
    """Base of every error caused by input, environment or configuration, not by a defect."""
