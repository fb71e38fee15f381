"""Evaluation in time: what each user plays next, asked moment by moment with what is known by then."""
