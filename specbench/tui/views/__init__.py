"""The screens: each composes widgets and carries out the actions that `actions.py` gives it."""
