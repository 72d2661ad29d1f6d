"""Weights that ship with mibench, with their licences and the code that loads them. See README.md in this folder."""
