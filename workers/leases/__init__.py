"""How workers come by keys: identities, the key directory, requests, grants, leases."""
