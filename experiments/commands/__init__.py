"""The command line, one file a command; options are shared by inheritance."""
