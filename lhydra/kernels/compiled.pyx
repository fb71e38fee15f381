# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Compiled loops over the arrays of one request. Dtypes, shapes and rows are checked here, before anything is read."""

include "numbers.pxi"
include "item_item.pxi"
include "order.pxi"
include "moment_laws.pxi"
include "moment.pxi"
include "lookup.pxi"
include "features.pxi"
include "history.pxi"
include "finite.pxi"
include "candidates.pxi"
include "replies.pxi"
