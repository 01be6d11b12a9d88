"""Commands and buttons: parse, ask the domain, reply."""
