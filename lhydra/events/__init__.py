"""The event log of the service: every recorded play as it came, append-only."""
