"""Drives BGP speakers: one ExaBGP process for each peer. Nothing here knows Kubernetes.

One process for each peer, for two reasons. Whatever a peer does (it floods, it sends garbage), it
does to its own session only. And a new configuration is a new process: ExaBGP 5.0 forgets a request
to reload while any of its peers has routes that were not sent yet, which a peer that is down has
for ever (exabgp/reactor/loop.py, `_pending_adjribout`).
"""
