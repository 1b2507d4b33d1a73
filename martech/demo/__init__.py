"""The demo: real purchases through the whole platform, and what it says compared with what the file says."""
