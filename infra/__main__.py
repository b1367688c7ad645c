"""`python -m ackline.infra` is the command `ackline`, for processes that start others with their own interpreter."""

from ackline.infra.cli import main

if __name__ == "__main__":
    main()
