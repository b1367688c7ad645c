"""Handlers that come with Ackline."""
