"""What people would run instead: the same users, catalogue, index and model behind other servers, for `--peers`."""
