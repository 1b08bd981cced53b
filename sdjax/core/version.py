"""This version of sdjax, as pictures and exported programs name it."""

VERSION = "0.1.0"
