"""`ackline sink`: a mail server for one machine that keeps what it gets and refuses whom you tell it to refuse.

`ackline up` runs one, so that `email.send` has somewhere to send to. The other commands need no running sink: they
change and read its files, which a running sink looks at for each mail.
"""

from __future__ import annotations

import signal
from datetime import datetime
from pathlib import Path

import click

from ackline.infra.mailbox import Mail, Mailbox
from ackline.infra.ports import LOOPBACK
from ackline.infra.ready import ready
from ackline.infra.refusals import Refusal, Refusals
from ackline.infra.settings import Settings, settings

#: What a refused sender hears if nobody says otherwise.
_TEMPORARY, _PERMANENT = "Mailbox busy, try again later", "No such mailbox here"


def mail_folder(of: Settings) -> Path:
    """Where the sink keeps mails, rules and its port."""
    return of.data_dir / "mail"


@click.group(invoke_without_command=True)
@click.pass_context
def sink(ctx: click.Context) -> None:
    """Take mail on this machine and keep it as files; refuse chosen addresses to see how failures are handled."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(run)


@sink.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port; 0: the last one, if free.")
@click.option("--host", default=LOOPBACK, show_default=True, help="Address to listen on. It asks for no password.")
def run(port: int, host: str) -> None:
    """Run the mail sink until Ctrl-C (the default)."""
    from ackline.infra.sink_server import SinkServer, settle_port  # the other commands need no aiosmtpd

    folder = mail_folder(settings())
    # Before the server's thread starts, which inherits the mask: the signals are for `sigwait` alone.
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with SinkServer(folder, port=port or settle_port(folder), host=host) as server:
        click.echo(f"The mail sink takes mail at {server.url} and keeps it in {folder}. Ctrl-C stops it.")
        ready()
        signal.sigwait(ends)
    click.echo("The mail sink has stopped.")


@sink.command()
@click.argument("address")
@click.option("--code", type=click.IntRange(400, 599), default=451, show_default=True, help="4xx: later; 5xx: never.")
@click.option("--text", help="What the sender is told.")
@click.option("--times", type=click.IntRange(1), help="How many deliveries are refused; without it, all.")
def refuse(address: str, code: int, text: str | None, times: int | None) -> None:
    """Refuse mail to ADDRESS: 451 says "try again later", 550 says "never"."""
    rule = Refusal(address, code, " ".join((text or "").split()) or (_TEMPORARY if code < 500 else _PERMANENT), times)
    Refusals(mail_folder(settings())).refuse(rule)
    often = {None: "from now on", 1: "once"}.get(times, f"the next {times} times")
    click.echo(f"Mail to {address} is refused {often}: {rule.reply}")
    click.echo(f"To end that: ackline sink accept {address}")


@sink.command()
@click.argument("address")
def accept(address: str) -> None:
    """Accept mail to ADDRESS again."""
    if Refusals(mail_folder(settings())).accept(address):
        click.echo(f"Mail to {address} is accepted again.")
    else:
        click.echo(f"Mail to {address} was not refused: nothing to do.")


@sink.command(name="list")
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="How many mails to show.")
def list_(last: int) -> None:
    """Show the mails that came last, and which addresses are refused."""
    folder = mail_folder(settings())
    mailbox = Mailbox(folder)
    mails, count = mailbox.mails(last=last), len(mailbox.files())
    if not mails:
        click.echo(f"No mail in {folder} yet.")
    for mail in mails:
        click.echo(_line(mail))
    if mails:
        shown = "" if count == len(mails) else f", the last {len(mails)} shown"
        click.echo(f"{count} mail{'s'[: count != 1]} in {folder}{shown}.")
    for rule in Refusals(folder).all():
        click.echo(f"Refused: {rule.address} with {rule.reply} ({rule.duration})")


def _line(mail: Mail) -> str:
    local: datetime = mail.received.astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}  {', '.join(mail.recipients):<32}  {mail.subject}  [{mail.file.name}]"
