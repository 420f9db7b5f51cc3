"""The mistake of a user, told in one line."""


class UserError(ValueError):
    """Says what was given, what is allowed, and where; the command line prints it alone and exits with 2."""
