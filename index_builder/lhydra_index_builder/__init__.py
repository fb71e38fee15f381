"""Embedding the catalogue, building and proving an index, publishing bundles and rolling back."""
