"""Imports: files of events, read, mapped to messages and given to the log, each row once."""
