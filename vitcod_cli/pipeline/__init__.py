"""The steps in a row: one model compressed, a sweep over sparsities, both in a folder that can be gone on with."""
