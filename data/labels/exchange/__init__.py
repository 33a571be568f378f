"""Rankings in and out of the label store: files, exports, consolidated rows."""
