"""What methods share: rankings, greedy choices, merging, clustering, budgets; batched, deterministic, no host sync.

In: a span's features, scores, grids.
Out: indices, merged vectors, budgets.
Uses: pruners.
"""
