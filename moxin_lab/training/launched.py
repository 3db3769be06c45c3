"""What torchrun tells the processes that it starts.

Out of scope: what they tell each other (`lab/ranks.py`); the training (Lightning reads the same
variables).
"""

import os
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore


def shared_store() -> PrefixStore:
    """The store of torchrun's agent, with names of our own for each attempt of its processes.

    Raises RuntimeError if it does not answer within a minute.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=60))
    return PrefixStore(f"moxin-lab {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
