"""What all of Ackline stands on: settings, wire format, topology, tables, the broker launcher, the command line.

Imports nothing of the project above it: `infra <- producer <- consumers <- dlq`.
"""
