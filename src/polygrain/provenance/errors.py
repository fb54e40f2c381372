"""The one exception that reaches a person: a line that says what, where and what to do."""


class UserError(Exception):
    """Bad input or a fault outside the program; the command line prints it as one line and exits 2."""
