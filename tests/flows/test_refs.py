"""References print as people name objects, and are values."""

import pytest

from flows.refs import CLUSTER, ObjectRef


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (ObjectRef("Service", "default", "web"), "Service default/web"),
        (ObjectRef.namespaced("Pod", "default/a"), "Pod default/a"),
        (ObjectRef.node("n1"), "Node n1"),
        (ObjectRef("container", "", "cabc"), "container cabc"),
        (CLUSTER, "cluster"),
    ],
)
def test_reference_prints_as_kind_and_name(reference: ObjectRef, text: str) -> None:
    assert str(reference) == text
    assert f"{reference}" == text


def test_key_without_a_namespace_is_refused() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        ObjectRef.namespaced("Pod", "a")
