"""Workloads: which one a pod belongs to, and the pod that a workload would have."""

import re
from typing import Any, Final

import msgspec

from controller.sources.objects import ObjectError, PodMetadata, PodObject, PodSpec
from flows.refs import ObjectRef

KINDS: Final = {
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "DaemonSet": "apps/v1",
    "ReplicaSet": "apps/v1",
    "Job": "batch/v1",
    "CronJob": "batch/v1",
    "ReplicationController": "v1",
}
"""The kinds with a template for pods, and their apiVersion."""
TEMPLATE_HASH: Final = "pod-template-hash"
_SCHEDULED: Final = re.compile(r"(?P<name>.+)-\d{8,10}")
"""A Job that a CronJob made ends in the minutes since 1970 (k8s.io/kubernetes, pkg/controller/
cronjob/utils.go, getJobName)."""


class _TemplateMetadata(msgspec.Struct, frozen=True):
    labels: dict[str, str] | None = None


class _Template(msgspec.Struct, frozen=True):
    metadata: _TemplateMetadata = _TemplateMetadata()
    spec: PodSpec = PodSpec()


class _JobSpec(msgspec.Struct, frozen=True):
    template: _Template | None = None


class _JobTemplate(msgspec.Struct, frozen=True):
    spec: _JobSpec = _JobSpec()


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    template: _Template | None = None
    job_template: _JobTemplate | None = None


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    completion_time: str | None = None


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    namespace: str = "default"
    owner_references: list[Any] | None = None


class Workload(msgspec.Struct, frozen=True):
    """A Deployment, CronJob or another object that has pods by a template."""

    kind: str
    metadata: _Metadata
    spec: _Spec = _Spec()
    status: _Status = _Status()

    @property
    def ref(self) -> ObjectRef:
        """The object."""
        return ObjectRef(self.kind, self.metadata.namespace or "default", self.metadata.name)

    @property
    def has_pods_of_its_own(self) -> bool:
        """Whether it has pods by itself: not as a part of another workload, and not finished."""
        return not self.metadata.owner_references and self.status.completion_time is None

    def pod(self) -> PodObject | None:
        """The pod that it would have; None: it has no template, or its pods use the host network.

        The pod has no node.
        """
        template = self.spec.template
        if template is None and self.spec.job_template is not None:
            template = self.spec.job_template.spec.template
        if template is None or template.spec.host_network:
            return None
        kind, namespace, name = self.ref
        metadata = PodMetadata(
            # A Pod has no name of this form, so it is nobody's.
            name=f"{name}.{kind.lower()}",
            namespace=namespace,
            uid="template",
            labels=template.metadata.labels,
            owner=f"{kind}/{name}",
        )
        return PodObject(metadata, msgspec.structs.replace(template.spec, node_name=""))


def read_workload(content: dict[str, Any]) -> Workload:
    """A workload of a manifest. Raises `ObjectError`."""
    kind, metadata = content["kind"], content.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if content.get("apiVersion") != KINDS[kind]:
        raise ObjectError(
            f"{kind} {name}: apiVersion: {content.get('apiVersion')!r} is not {KINDS[kind]!r}"
        )
    try:
        return msgspec.convert(content, Workload)
    except msgspec.ValidationError as error:
        raise ObjectError(f"{kind} {name}: {error}") from error


def workload_of(pod: PodObject) -> ObjectRef:
    """The workload of a pod: what people call it. Without an owner, the Pod itself."""
    metadata = pod.metadata
    kind, _, name = metadata.owner.partition("/")
    if kind == "ReplicaSet":
        ending = f"-{(metadata.labels or {}).get(TEMPLATE_HASH)}"
        if name.endswith(ending):
            kind, name = "Deployment", name.removesuffix(ending)
    elif kind == "Job" and (found := _SCHEDULED.fullmatch(name)):
        kind, name = "CronJob", found["name"]
    if not name or kind == "Node":
        return ObjectRef("Pod", metadata.namespace, metadata.name)
    return ObjectRef(kind, metadata.namespace, name)
