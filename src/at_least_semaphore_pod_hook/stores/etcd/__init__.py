"""Semaphores in etcd."""
