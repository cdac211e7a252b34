"""The key service: the only worker that can unwrap keys."""
