"""The evaluation as one HTML page: a function per section, from the document to what `lhydra.page` draws."""
