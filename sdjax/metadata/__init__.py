"""What a picture says of how it was made: our settings, and those that other programs wrote.

Read `picture` (a picture that carries its settings), `infotext` (the text that A1111 began), `texts` (where a file
keeps its texts), `foreign` (what other programs' texts mean). What settings may hold, `request.stored_settings` checks.
"""
