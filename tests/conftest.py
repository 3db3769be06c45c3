"""What several test files share."""

import gc
import os
import socket
from pathlib import Path

import matplotlib
import pytest

# Models here are tiny: more threads only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU, Triton kernels run in its interpreter, which must be asked for before they are
# imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository that these tests belong to."""
    return Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def matplotlib_style():
    """Each test begins with matplotlib's own defaults. Restoring what was there before is not
    enough: a fixture of a module or of the session may have set the lab's style of figures.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@pytest.fixture(autouse=True, scope="module")
def settled_heap():
    """What earlier test files leave alive is not searched for garbage again and again: after 6,000
    tests one collection costs a second, in whichever test it falls.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_network(monkeypatch):
    """Any connection, and any look-up of a name, is a failure of the test."""

    def refuse(*_):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
