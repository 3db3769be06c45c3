"""What a rule about one document reports when the document breaks it.

Guarantees: a finding is immutable; two findings are equal if their reason and detail are.
Out of scope: what is done with the document (the steps of a pipeline decide).
"""

from typing import NamedTuple


class Finding(NamedTuple):
    """`reason` is a short constant, `detail` the value that broke the limit."""

    reason: str
    detail: str
