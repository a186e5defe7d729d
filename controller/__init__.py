"""The shell around the core: sources, the reconciler, the API. One asyncio process."""
