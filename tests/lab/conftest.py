"""Tests on whole labs; their fixtures `lab` and `name` are those of `tests.labs`."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _root():
    if os.geteuid() != 0:
        pytest.exit("tests/lab makes network namespaces, and only root may do that", returncode=1)
