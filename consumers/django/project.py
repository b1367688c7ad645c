"""A Django project as an application of Ackline's: `ACKLINE_APP=ackline.consumers.django.project`.

Importing it sets Django up as `DJANGO_SETTINGS_MODULE` says, whose installed apps then import what they declare.
"""

import django

django.setup()
