"""The ingest worker: from plaintext-ingest to sealed packs and index-updates."""
