"""Commands for people, each a thin user of the public API."""
