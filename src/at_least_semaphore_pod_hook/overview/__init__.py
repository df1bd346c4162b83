"""What semaphores look like at one moment: one document for the command line and the status page."""
