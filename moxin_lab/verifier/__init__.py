"""Is this answer the gold answer? Answers are read into types, screened and compared, one rule for
each type, in workers that can be killed. Imports nothing else of this package.
"""


def kinds_table() -> list[dict[str, str]]:
    """Which types of answers are decided how: one row per type with `type`, `example` (a gold
    answer and a right answer in another form) and `decided by`.
    """
    from moxin_lab.verifier.compare import EXAMPLES, RULES

    return [
        {"type": name, "example": EXAMPLES[name], "decided by": rule}
        for name, rule in RULES.items()
    ]
