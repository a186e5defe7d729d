"""The pure core: which flows a node should have, and why. Standard library only, no I/O."""
