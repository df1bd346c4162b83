"""`python -m at_least_semaphore_pod_hook` is the command line."""

import sys

from at_least_semaphore_pod_hook.cli import main

sys.exit(main())
