"""Parts of other libraries as parts of ours, and ours as parts of theirs; nothing here is imported by the rest.

:mod:`driftline.interop.pytorch` plays datasets and loaders of PyTorch, :mod:`driftline.interop.torch_metrics` measures
with torchmetrics, :mod:`driftline.interop.avalanche` and :mod:`driftline.interop.river` go both ways between here and
those two.
"""
