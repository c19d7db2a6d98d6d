"""Scaling studies: what more processes bring, where the time goes, and how many nodes are worth paying for."""
