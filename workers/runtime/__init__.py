"""The loop of every worker: batches, retries, rebalances, stopping, health."""
