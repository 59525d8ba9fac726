class UserError(ValueError):
    """Something the user gave cannot be used.

    The message says what was given, what is allowed and what to do. The command lines print it
    without a traceback.
    """
