"""Real CT beside the project, for the tests that want more than a phantom."""

from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"


def real(name: str) -> Path:
    "The folder or file of that name; the test is skipped, saying so, where it is absent."
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real data {name} is not beside the project")
    return path
