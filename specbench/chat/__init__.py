"""Talking to a target with any method: what `specbench chat` and the Chat screen share. Not a measurement."""
