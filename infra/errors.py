"""Errors that a person reads.

```
AcklineError            what happened, to what, and what to do next, in a sentence
└── ConfigurationError  a setting is missing or cannot be used
```

The command line prints an `AcklineError` as one line and exits with its `exit_code`: a user's mistake is no
stack trace. Packages add their own below it (see `ackline.producer.errors`).
"""


class AcklineError(Exception):
    """Anything that Ackline tells its user in a sentence."""

    #: What a command that ends with this error returns to the shell.
    exit_code = 1


class ConfigurationError(AcklineError):
    """A setting is missing or cannot be used."""

    exit_code = 2
