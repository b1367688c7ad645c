"""`manage.py test`: needs no broker, for what is published waits in the outbox."""

from django.db import connection
from django.test import TestCase

from shop import messages
from shop.models import Order
from shop.tasks import write_invoice


def waiting() -> list[str]:
    """The types of the messages, and the names of the queues of the jobs, that wait to be published."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT type FROM ackline_outbox ORDER BY id")
        return [type_ for (type_,) in cursor.fetchall()]


class OrdersTest(TestCase):
    def test_an_order_is_saved_and_published_at_once(self) -> None:
        answer = self.client.post("/orders", {"product": "tea", "quantity": 2}, content_type="application/json")
        self.assertEqual(answer.status_code, 201)
        self.assertEqual(Order.objects.get(pk=answer.json()["order"]).product, "tea")
        self.assertEqual(waiting(), ["shop.order.placed", "ackline.jobs"])

    def test_what_is_not_saved_is_not_published(self) -> None:
        self.client.raise_request_exception = False
        answer = self.client.post("/orders", {"product": "tea", "quantity": "many"}, content_type="application/json")
        self.assertEqual(answer.status_code, 500)
        self.assertEqual((Order.objects.count(), waiting()), (0, []))

    def test_the_handlers_do_their_work(self) -> None:
        order = Order.objects.create(product="tea", quantity=2)
        messages.pack(messages.OrderPlaced(order=order.pk, product="tea", quantity=2))
        write_invoice(order.pk)
        order.refresh_from_db()
        self.assertTrue(order.packed)
        self.assertEqual(order.invoice, f"Invoice {order.pk}: 2 x tea")
