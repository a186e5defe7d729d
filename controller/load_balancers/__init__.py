"""Addresses for Services of type LoadBalancer: pools, who gets which address, and who serves it."""

from controller.load_balancers.balancers import Announced, LoadBalancers

__all__ = ["Announced", "LoadBalancers"]
