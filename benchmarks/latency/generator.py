"""The process of `load.run_in_subprocess`: a pickled `Plan` on stdin, the numbers of its run on stdout."""

import pickle
import sys

from benchmarks.latency.summary import summarise

if __name__ == "__main__":
    out = sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever prints must not look like numbers
    plan = pickle.load(sys.stdin.buffer)
    out.write(pickle.dumps(summarise(plan.run())))
