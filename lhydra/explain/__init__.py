"""Why a track is in a list, or why it is not: one request's own arrays, read for one track."""
