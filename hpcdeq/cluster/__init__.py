"""The machine and the cluster: what is installed, and what answers."""
