"""Hooks for batch schedulers, by which preempted work is saved and woken instead of begun again."""
