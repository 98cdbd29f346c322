"""The processes of one command: which one this is, how they find each other, and when they stop."""
