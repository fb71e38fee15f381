"""The metrics of a server: their layout, how a worker counts, and how the supervisor shows the sum to Prometheus.

The supervisor makes a block of shared memory per worker; the worker adds whole numbers at fixed places in it, some
2 µs a request (prometheus_client's own way to count in several processes takes ten times as long). A scrape
reads the blocks. What a worker counted is kept when it ends, however it ends, so no counter ever goes back.
"""
