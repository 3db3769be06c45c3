"""What several test files share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository that these tests belong to."""
    return Path(__file__).parent.parent
