"""One notebook through papermill, with what papermill leaves open: a bound on what it prints, and
paths of any letters.

    execute(root / "notebooks/03_model.ipynb", out, {"scale": "tiny"}, cwd=root)

Guarantees: a notebook that prints without end is stopped, and its output up to there is kept; a
path with braces is that path (papermill fills them in).
Out of scope: a cell that runs without end and prints nothing: stopping the run ends its kernel.
"""

import asyncio
import signal
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

MAX_OUTPUT_BYTES = 2**25
"""Most that one notebook may print or display; the largest of this repository has 1 MiB. Our
choice."""
SHOWN_MESSAGES = ("stream", "display_data", "update_display_data", "execute_result", "error")


class TooMuchOutput(Exception):
    """A notebook printed more than `MAX_OUTPUT_BYTES`, in the cell of this number."""

    def __init__(self, cell: int) -> None:
        super().__init__(f"cell {cell} prints without end: more than {MAX_OUTPUT_BYTES:,} bytes")
        self.cell = cell


def execute(
    source: Any,
    out: Path,
    parameters: Mapping[str, Any],
    cwd: Path,
    on_error: Callable[[str], object] = lambda message: None,
) -> None:
    """Run a notebook and write it with its outputs to `out`, cell by cell.

    source: its path, or the notebook as nbformat's. on_error: called with an error as soon as a
    cell has raised it, while its kernel is still there.
    Raises papermill.PapermillExecutionError for a cell that raised, nbclient's DeadKernelError for
    a kernel that died, TooMuchOutput, and OSError if `out` cannot be written.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    too_much: list[int] = []
    try:
        papermill.execute_notebook(
            _literal(source) if isinstance(source, Path) else source,
            _literal(out),
            parameters=dict(parameters),
            engine_name=_engine(),
            kernel_name="python3",
            cwd=str(cwd),
            progress_bar=False,
            start_timeout=120,
            # At its usual level the kernel warns at every start that its loopback connection is not
            # encrypted.
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            too_much=too_much,
            on_error=on_error,
        )
    except (DeadKernelError, papermill.PapermillExecutionError):
        if too_much:
            raise TooMuchOutput(too_much[0]) from None
        raise


def _literal(path: Path) -> str:
    return str(path).replace("{", "{{").replace("}", "}}")


@cache
def _engine() -> str:
    """Name of papermill's engine with a bound, registered at the first call."""
    from nbclient.util import ensure_async
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines

    class Client(PapermillNotebookClient):
        """Counts what comes, and kills the kernel when it is too much: code may catch an interrupt,
        and a kernel that prints answers no request to end.
        """

        too_much: list[int]
        on_error: Callable[[str], object]
        num_bytes = 0

        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            if msg["msg_type"] in SHOWN_MESSAGES:
                left, content = MAX_OUTPUT_BYTES - self.num_bytes, msg["content"]
                if msg["msg_type"] == "error":
                    self.on_error(f"{content['ename']}: {content['evalue']}")
                self.num_bytes += _size(content)
                if left < 0:
                    return None
                if self.num_bytes > MAX_OUTPUT_BYTES:
                    self.too_much.append(cell_index + 1)
                    killed = ensure_async(self.km.signal_kernel(signal.SIGKILL))
                    self.killing = asyncio.ensure_future(killed)
                    if msg["msg_type"] != "stream":
                        return None
                    content["text"] = content["text"][:left]
            return super().process_message(msg, cell, cell_index)

    class BoundedEngine(Engine):
        @classmethod
        def execute_managed_notebook(
            cls,
            nb_man: Any,
            kernel_name: str,
            *,
            start_timeout: int,
            too_much: list[int],
            on_error: Callable[[str], object],
            extra_arguments: list[str],
            **ignored: Any,
        ) -> None:
            client = Client(
                nb_man,
                kernel_name=kernel_name,
                startup_timeout=start_timeout,
                extra_arguments=extra_arguments,
                timeout=None,
            )
            client.too_much, client.on_error = too_much, on_error
            client.execute()

    papermill_engines.register("bounded", BoundedEngine)
    return "bounded"


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8
