"""Fixtures that every room's tests share."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tiny import Tiny

settings.register_profile("patient", deadline=None)  # how long a test takes is the machine's business
settings.load_profile("patient")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real collections and weights that live beside the repository, never in it."""
    folder = Path(__file__).parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("needs the real data in ../shared/data, which is not here")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """A collection and models in a folder that every test may read and none may change."""
    from tiny import write_all

    return write_all(tmp_path_factory.mktemp("tiny"))
