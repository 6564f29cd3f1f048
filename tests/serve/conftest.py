"""The tiny pipeline that the tests of serving share."""

import pytest
from serving import Built, build
from tiny import Tiny


@pytest.fixture(scope="session")
def built(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Vectors and an index of words over the tiny collection."""
    return build(tiny, tmp_path_factory.mktemp("serving"))
