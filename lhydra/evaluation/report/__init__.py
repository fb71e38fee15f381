"""The evaluation as one HTML page: sections as plain rows (`*.py`), their looks (`*.html`, `*.css`, `*.js`)."""
