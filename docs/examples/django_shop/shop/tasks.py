"""The shop's jobs."""

from celery import shared_task

from shop.models import Order


@shared_task
def write_invoice(number: int) -> str:
    """Write the invoice of an order; returns it."""
    order = Order.objects.get(pk=number)
    order.invoice = f"Invoice {number}: {order.quantity} x {order.product}"
    order.save(update_fields=["invoice"])
    return order.invoice
