"""What a release holds, and how each of its files is opened and written: reader and writer of a format side by side."""
