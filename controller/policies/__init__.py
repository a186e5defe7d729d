"""Policies: from Kubernetes objects to the walks, sets and isolations of the view.

- `network_policies`, `cluster_policies`: an object becomes a `drafts.PolicyDraft`, with problems;
- `selectors`, `blocks`, `port_sets`: the parts of a draft;
- `pod_groups`: which selectors match which attachments;
- `peer_sets`: the sets of peers and their members;
- `walks`: the steps of each policy, and which node needs which walk and which set;
- `inventory`: all of it together, kept up to date incrementally.
"""

from controller.policies.inventory import PolicyInventory

__all__ = ["PolicyInventory"]
