"""Whether a machine is fit to be a node of Sluice, before and after installation.

`gather` looks at the host and sends probes; the result is `facts`, which are values. `findings` and
`leftovers` are pure functions of them.
"""
