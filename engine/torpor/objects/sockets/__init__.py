"""Sockets: unix, TCP, UDP, netlink, and the content of their queues."""
