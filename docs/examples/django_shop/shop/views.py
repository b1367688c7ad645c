"""The shop over HTTP."""

import json

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from ackline.consumers import django as jobs
from ackline.producer import django as messages
from shop.messages import OrderPlaced
from shop.models import Order
from shop.tasks import write_invoice


@csrf_exempt  # it is called by programs, which have no cookie that somebody else could use
@require_POST
def place(request: HttpRequest) -> JsonResponse:
    """Take an order. It is saved, and others are told, or neither: also when this process is killed."""
    asked = json.loads(request.body)
    with transaction.atomic():
        order = Order.objects.create(product=asked["product"], quantity=asked["quantity"])
        messages.add(OrderPlaced(order=order.pk, product=order.product, quantity=order.quantity))
        jobs.add(write_invoice.s(order.pk))
    return JsonResponse({"order": order.pk}, status=201)


@require_GET
def show(request: HttpRequest, number: int) -> JsonResponse:
    """How far an order is."""
    order = Order.objects.get(pk=number)
    return JsonResponse({"packed": order.packed, "invoice": order.invoice})
