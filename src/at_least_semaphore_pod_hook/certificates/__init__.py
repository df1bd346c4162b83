"""Certificates that the webhook makes, rotates and has trusted by itself. Imported only where it is asked to."""
