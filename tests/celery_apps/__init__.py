"""Celery apps as tutorials have them, for `ackline celery check`."""
