"""Key management systems: one protocol, one file a provider, opened by `registry.open_kms`."""
