"""Warnings of this package, so that a user can filter them and our tests can turn them into errors."""


class CserWarning(UserWarning):
    """Something the user should know that does not stop the run."""
