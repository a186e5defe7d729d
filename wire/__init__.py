"""The protocol between the controller and the agents: paths, documents and limits.

Both sides may be of different versions, so a document only ever gains fields that have a default,
and a reader ignores fields that it does not know.

`wire.tracing` is how answers about the way of a packet come about, on both sides.
"""
