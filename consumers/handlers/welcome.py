"""`user.registered`: a mail of welcome.

The mail is a message of its own (`email.send`), so that a mail server that is away repeats the mail, and nothing else.
Whatever else follows from a registration is another consumer of the same message.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from ackline.consumers import Context, consumer
from ackline.consumers.handlers.email import Address, Line, SendEmail
from ackline.producer import message


@message("user.registered")
class UserRegistered(BaseModel):
    """Somebody has registered. What this handler does not know is left to others."""

    user_id: str
    name: Annotated[Line, Field(max_length=200)]
    email: Address


@consumer("welcome-mail")
def welcome(user: UserRegistered, ctx: Context) -> None:
    """Have the mail sent. A repeated delivery has the same mail sent, under the same id."""
    body = f"Hello {user.name},\n\nyour account is ready. It is good to have you here.\n"
    ctx.publish(SendEmail(to=user.email, subject=f"Welcome, {user.name}", body=body))
