"""Which base model a request means: one of the records, a folder on this machine, or an id on the Hub."""
