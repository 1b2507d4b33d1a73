"""The REST API under /v1/: parse, call a domain function, respond."""
