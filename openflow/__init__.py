"""OpenFlow 1.5 without a framework: codec, templates, batches, a sans-I/O session, asyncio rims."""
