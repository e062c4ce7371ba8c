"""What the check beside this folder is made of. Python's standard library only."""


class Failure(Exception):
    """The check cannot go on; the message says why and, where it can, what to do."""
