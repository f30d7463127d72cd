"""Sockets: unix, TCP, UDP, netlink, and what waits in their queues."""
