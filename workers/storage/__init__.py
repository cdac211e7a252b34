"""Object storage: one protocol, S3 and memory behind it."""
