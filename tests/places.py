"""Where things lie: the project's root and the test data beside the tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
RECORDINGS = TESTS / "recordings"
