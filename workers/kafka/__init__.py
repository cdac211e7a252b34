"""Kafka: one protocol, aiokafka and memory behind it."""
