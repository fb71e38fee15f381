"""What is known of listeners, and where it is kept."""
