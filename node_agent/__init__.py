"""One per node: plugs pods in and keeps the bridge in shape. It takes no forwarding decision."""
