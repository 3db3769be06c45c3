"""The exception of a row that yields no document."""


class Unreadable(Exception):
    """A row that yields no document: reason (one of a few, for counting) and detail."""
