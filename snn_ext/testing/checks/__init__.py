"""The checks, one idea each, by what they are about."""
