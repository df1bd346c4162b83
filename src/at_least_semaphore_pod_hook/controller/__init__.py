"""What the webhook knows of the cluster's API server."""
