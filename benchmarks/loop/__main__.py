"""`python -m benchmarks.loop`, from the root of the repository."""

import sys

from benchmarks.loop.command import main

sys.exit(main())
