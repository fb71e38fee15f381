"""Does the loop work? Synthetic listeners answer served lists, and what they do becomes the next model."""
