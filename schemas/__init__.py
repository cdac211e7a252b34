"""The contract as code: one type per message. Imports nothing of the workers."""
