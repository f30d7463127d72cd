"""The conformance tests' stage, for tests of whole stories."""

from tests.conformance.conftest import root, stage, user

__all__ = ["root", "stage", "user"]
