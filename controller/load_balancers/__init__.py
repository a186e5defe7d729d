"""Addresses for Services of type LoadBalancer: pools, who gets which address, and who serves it."""
