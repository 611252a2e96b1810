"""The commands of the command line, by what they are for; :mod:`driftline.cli` puts them together."""
