"""HTTPS, certificates, probes and metrics."""
