"""The gRPC server: a supervisor and its workers around the core recommender."""
