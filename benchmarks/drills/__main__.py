"""`python -m benchmarks.drills`, from the root of the repository."""

import sys

from benchmarks.drills.command import main

sys.exit(main())
