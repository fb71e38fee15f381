# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Compiled loops over the arrays of one request. Who calls them has checked dtypes and that rows are in range."""

include "numbers.pxi"
include "item_item.pxi"
include "moment.pxi"
include "lookup.pxi"
include "features.pxi"
include "finite.pxi"
include "candidates.pxi"
include "replies.pxi"
