"""The answer log: a sample of the answers of a server, each with all that it takes to answer again."""
