"""The command line, one file a command; options are shared by inheritance.

A command is a frozen dataclass: its fields are its options, ``prepare`` checks everything and
returns what does it. Modules of commands import torch inside functions only.
"""
