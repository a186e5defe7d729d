"""References to Kubernetes objects: the subjects of flows, problems, reports and Events.

A reference is a value to compare, sort and use as a key. Its text is for people only and is never
parsed.
"""

from typing import Final, NamedTuple, TypeAlias


class ObjectRef(NamedTuple):
    """One object of the cluster, named as in Kubernetes.

    `namespace` is empty for objects that have none. `kind` is a Kubernetes kind, or "container"
    (an attachment without a pod; `name` is its OVS port), or "cluster" (see `CLUSTER`).
    """

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        """`Service default/web`, `Node n1`, `container cabc`, `cluster`."""
        path = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {path}" if path else self.kind

    @classmethod
    def node(cls, name: str) -> "ObjectRef":
        """A Node."""
        return cls("Node", "", name)

    @classmethod
    def namespaced(cls, kind: str, key: str) -> "ObjectRef":
        """An object by its `NAMESPACE/NAME`. Raises `ValueError` for a key without a slash."""
        namespace, name = key.split("/", 1)
        return cls(kind, namespace, name)


Owners: TypeAlias = tuple[ObjectRef, ...]
"""The objects that a flow or a group exists for."""
CLUSTER: Final = ObjectRef("cluster", "", "")
"""The cluster as a whole: for flows and problems without a single object."""
