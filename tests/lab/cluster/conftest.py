"""One cluster of kubelets for all tests of this folder, which leave it as they found it."""

from collections.abc import Iterator

import pytest

from lab import Lab
from tests.labs import unique_name


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    """Three nodes, with a containerd and a kubelet each."""
    with Lab(unique_name()).running(kubelets=True) as running:
        yield running
