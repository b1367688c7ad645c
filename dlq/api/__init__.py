"""The desk over HTTP: what people, the console and programs do with dead letters, under `/api/`."""

from ackline.dlq.api.app import check_address, create_app

__all__ = ["check_address", "create_app"]
