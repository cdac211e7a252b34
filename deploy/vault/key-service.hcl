# The key service: wraps and opens keys under one transit key, and keeps its own token alive.
# Make the key with derived=true, or it does not bind what it wraps to an index:
#
#     bao secrets enable transit
#     bao write -f transit/keys/sealstream derived=true
#     bao policy write sealstream-key-service key-service.hcl
#
# Another mount or key: change both names in every path. One more block of four a key, where indexes
# name keys of their own.

path "transit/keys/sealstream" {
  capabilities = ["read"]
}

path "transit/encrypt/sealstream" {
  capabilities = ["update"]
}

path "transit/decrypt/sealstream" {
  capabilities = ["update"]
}

path "transit/rewrap/sealstream" {
  capabilities = ["update"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
