#!/bin/sh
# Make the roles of webhook and sidecar in etcd. etcdctl reads where etcd is, and who asks, from ETCDCTL_ENDPOINTS,
# ETCDCTL_USER and the like. What is left to do: users of these roles, and `etcdctl auth enable`; see docs/security.md.
set -eu
etcdctl role add webhook
etcdctl role grant-permission --prefix=true webhook readwrite queue/
etcdctl role grant-permission --prefix=true webhook readwrite inflight/
etcdctl role grant-permission --prefix=true webhook readwrite denied/
etcdctl role grant-permission --prefix=true webhook readwrite ended/
etcdctl role grant-permission --prefix=true webhook readwrite lock/
etcdctl role grant-permission webhook readwrite epoch
etcdctl role add sidecar
etcdctl role grant-permission --prefix=true sidecar readwrite queue/
etcdctl role grant-permission --prefix=true sidecar readwrite inflight/
etcdctl role grant-permission --prefix=true sidecar read ended/
