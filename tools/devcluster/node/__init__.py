"""A cluster with real nodes on one machine: containerd, runc, kubelet, scheduler, kube-proxy and DNS.

`isolation` gives a command namespaces of its own, in which everything here runs, and by whose end everything is gone.
`images` builds what the nodes run, before that, as nothing in there reaches a network. `cluster` puts it together.
"""
