"""What tests of the nodes share."""

from __future__ import annotations

from typing import Any

import pytest

from .. import nodepack


@pytest.fixture(scope="module")
def vq() -> Any:
    """The VQ of the built-in checkpoint, as the loader gives it."""
    return nodepack.run(nodepack.nodes()["DimooLoader"], checkpoint="DiMOO-nano (built in)").args[1]
