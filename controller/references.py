"""References to objects in reports."""

import msgspec

from flows.refs import ObjectRef


class Reference(msgspec.Struct, frozen=True):
    """An object, as `flows.refs.ObjectRef`: a struct, so that JSON has the names of the fields."""

    kind: str
    namespace: str
    name: str

    @classmethod
    def of(cls, ref: ObjectRef) -> "Reference":
        """The same object."""
        return cls(*ref)

    @property
    def ref(self) -> ObjectRef:
        """The same object."""
        return ObjectRef(self.kind, self.namespace, self.name)

    def __str__(self) -> str:
        return str(self.ref)
