"""How far work is: one type of callable, taken by every function that runs for more than a moment.

    def extract_card(card: Path, progress: Progress | None = None) -> pa.Table: ...
    extract_card(card, progress=stage.progress)      # shown on the runner's terminal

Guarantees: imports nothing heavy.
Out of scope: how progress is shown (`Stage.progress`, `runner.py`).
"""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""(steps done, steps in total, a few words on the work)."""
