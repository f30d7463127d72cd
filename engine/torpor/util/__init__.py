"""Helpers for all floors that are independent of the rest of Torpor."""
