"""Lhydra: learns from a listening log and recommends tracks online. The core imports nothing here."""

__version__ = "0.1.0"
