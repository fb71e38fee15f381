"""What would change for listeners between two bundles: both answer the same queries, and their lists are compared.

A is before, B after. Rows differ between bundles, so tracks are told apart by their hash. A track is judged, in
listeners and genre, by B's catalogue where it is there and by A's where it is not: a list that stays the same has not
shifted, whatever was learned of its tracks meanwhile. Added, removed, new and gone speak of tracks that may be
returned: a track that `lhydra index remove` took out is gone, though its row is there.
"""
