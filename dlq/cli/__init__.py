"""The command line of the desk, `ackline dlq`: thin layers over the services of `ackline.dlq.desk`."""
