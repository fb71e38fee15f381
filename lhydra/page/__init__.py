"""Results as one HTML page: what a page is made of (`*.py`), and its looks (`*.html`, `*.css`, `*.js`)."""
