"""Fixtures that several files use."""

pytest_plugins = ["tests.hub_place"]
