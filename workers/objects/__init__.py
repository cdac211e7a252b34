"""Documents outside of the index: sealed contents, access records, updates, results."""
