"""The error of everything a person can mend: commands print its message as one line and exit with 2."""


class UserError(ValueError):
    """Bad input from outside: the message names the thing and the remedy."""
