"""Where a packet goes: `sluice trace`. Agents follow it on their nodes; this joins the parts."""
