"""Ranking and classification metrics, and the evaluation of a model or store on a dataset."""
