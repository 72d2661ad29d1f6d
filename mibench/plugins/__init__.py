"""Plug-ins: which there are (registry) and their typed settings."""
