"""The shop's settings: Django's, Ackline's and Celery's in one place."""

import os
from pathlib import Path

FOLDER = Path(os.environ.get("SHOP_FOLDER", Path(__file__).resolve().parent.parent))

SECRET_KEY = os.environ.get("SHOP_SECRET_KEY", "for development only")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True
INSTALLED_APPS = ["ackline.consumers.django", "shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FOLDER / "shop.db",
        # Who writes waits for its turn at the beginning of a transaction, and not in the middle, where SQLite refuses.
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
    }
}

ACKLINE_DATA_DIR = FOLDER / ".ackline"
ACKLINE_SERVICE = "shop"
CELERY_TASK_SOFT_TIME_LIMIT = 30
CELERY_TASK_TIME_LIMIT = 60
