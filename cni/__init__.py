"""The CNI plugin that a container runtime executes; see `cni.sluice_cni`."""
