"""reasoning-gym, imported without its one dependency that needs a C compiler.

`import reasoning_gym` imports every family, and its zebra puzzles import pycosat, which is
published as source only: on a machine without a C compiler the whole set-up would fail for a
family that this lab does not use. The lock file therefore omits pycosat (`override-dependencies` in
pyproject.toml), and `load` lets the import pass without it.

Guarantees: pycosat is used where it is installed; otherwise every other family works, and zebra
puzzles raise an ImportError that says what is missing. Nothing stays in `sys.modules` under the
name of a package that is not there.
Out of scope: any other missing dependency, which fails as usual.
"""

import importlib.util
import sys
import warnings
from types import ModuleType


def load() -> ModuleType:
    """The package `reasoning_gym`."""
    if "reasoning_gym" not in sys.modules:
        without_pycosat = importlib.util.find_spec("pycosat") is None
        if without_pycosat:
            sys.modules["pycosat"] = _missing_pycosat()
        try:
            # A package of its compares with `is` and a literal: Python warns once, when it compiles
            # it, and the warning would put a path of this machine on the stage's page.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                import reasoning_gym
        finally:
            if without_pycosat:
                del sys.modules["pycosat"]
    import reasoning_gym

    return reasoning_gym


def _missing_pycosat() -> ModuleType:
    def refuse(name: str) -> None:
        if name.startswith("__"):  # read by the import system
            raise AttributeError(name)
        raise ImportError(
            f"pycosat.{name} is needed by reasoning-gym's zebra puzzles and is not installed: "
            "pip install pycosat (needs a C compiler)"
        )

    module = ModuleType("pycosat")
    module.__getattr__ = refuse  # type: ignore[method-assign]
    return module
