"""The HTTP door for upstream services."""

from ackline.producer.gateway.app import check_address, create_app

__all__ = ["check_address", "create_app"]
