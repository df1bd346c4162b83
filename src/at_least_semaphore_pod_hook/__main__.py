"""`python -m at_least_semaphore_pod_hook`."""

import signal
import sys

if sys.argv[1:2] == ["sidecar"]:
    # A signal that comes while the rest is being imported waits for its handler instead of killing us, or, where we are
    # process 1, of getting lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))

from at_least_semaphore_pod_hook.cli import main

if __name__ == "__main__":
    sys.exit(main())
