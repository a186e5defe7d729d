"""Where the cluster comes from: the API server, or a directory of manifests."""
