"""HTTP and JSON before a running server: the same methods, with no second definition of any."""
