"""The two ways in which a call can end badly; the front door turns them into exit codes 2 and 1."""


class InputError(ValueError):
    """What the user gave cannot be used: the message says what came, what was wanted, the mend.

    Exit code 2.
    """


class DamagedDataError(RuntimeError):
    """Files are missing, truncated or altered: the message names the file and what mends it.

    Exit code 1.
    """
