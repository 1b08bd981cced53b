"""The kinds of adapters: what each does to a parameter (`delta`), a file a kind."""
