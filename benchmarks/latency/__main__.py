"""`python -m benchmarks.latency`, from the root of the repository."""

import sys

from benchmarks.latency.command import main

sys.exit(main())
