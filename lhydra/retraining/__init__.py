"""Learning again from what was played: one turn of the loop, from the log of plays to the next bundle."""
