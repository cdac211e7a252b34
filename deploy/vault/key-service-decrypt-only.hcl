# A key service that opens what exists and makes nothing new: searches and renewals work, and new
# indexes, rotation and rewrapping are refused. For a standby site, an audit, or while a deployment
# is being shut down.

path "transit/keys/sealstream" {
  capabilities = ["read"]
}

path "transit/decrypt/sealstream" {
  capabilities = ["update"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
