"""The error for everything a user can fix: commands print its message as one line and exit with 2."""


class UserError(ValueError):
    """Bad input from outside: the message names the thing and the remedy."""
