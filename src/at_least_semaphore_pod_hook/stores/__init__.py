"""Where semaphores live."""
