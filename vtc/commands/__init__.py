"""The commands of ``vtc``, a function each; ``vtc.cli`` puts them together."""
