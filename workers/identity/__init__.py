"""Who is calling: identity providers and identity tokens."""
