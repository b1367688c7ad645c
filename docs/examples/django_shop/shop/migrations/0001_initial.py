"""The orders."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("product", models.TextField()),
                ("quantity", models.PositiveIntegerField()),
                ("packed", models.BooleanField(default=False)),
                ("invoice", models.TextField(blank=True)),
            ],
        ),
    ]
