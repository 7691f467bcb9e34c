"""Measurements that users run on their own machines: reading, writing, feeding, peers."""
