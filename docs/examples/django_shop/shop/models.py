"""What the shop keeps."""

from django.db import models


class Order(models.Model):
    """An order, and how far it is."""

    product = models.TextField()
    quantity = models.PositiveIntegerField()
    packed = models.BooleanField(default=False)
    invoice = models.TextField(blank=True)
