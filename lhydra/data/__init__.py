"""Reading and checking sources, preparing datasets, splitting, and the synthetic world."""
