"""How long work says how far it is: one callable, taken by every function that runs for more than a moment.

    def extract_card(card: Path, progress: Progress | None = None) -> pa.Table: ...
    extract_card(card, progress=stage.progress)      # the runner's terminal shows it

Imports nothing.
"""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""(steps done, steps in all, a few words on what is being done)."""
