"""The commands of ``vtc``, a function each; ``vtc.commands.main`` puts them together."""
