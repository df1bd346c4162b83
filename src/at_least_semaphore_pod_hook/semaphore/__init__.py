"""The domain: semaphores, permits, and the contracts of stores and locks."""
