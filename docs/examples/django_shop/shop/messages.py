"""What the shop tells others, and what it does about it itself: imported by Ackline, like `tasks.py`."""

from pydantic import BaseModel

from ackline.consumers import consumer
from ackline.producer import message
from shop.models import Order


@message("shop.order.placed")
class OrderPlaced(BaseModel):
    """Somebody ordered something."""

    order: int
    product: str
    quantity: int


@consumer("shop.packing")
def pack(placed: OrderPlaced) -> None:
    """Pack the order. It may come twice, which changes nothing."""
    Order.objects.filter(pk=placed.order).update(packed=True)
