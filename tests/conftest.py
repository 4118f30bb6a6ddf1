"""Fixtures that several files use."""

import pytest

pytest_plugins = ["tests.hub_place"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that compare a picture are marked: `make test-processors` runs them again with other kernels of numpy."""
    for item in items:
        if isinstance(item, pytest.Function) and "snap_compare" in item.fixturenames:
            item.add_marker(pytest.mark.picture)
