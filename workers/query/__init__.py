"""The query worker: from query-request to query-result."""
