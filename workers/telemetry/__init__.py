"""Logs, metrics and trace context. Never a secret, never plaintext."""
